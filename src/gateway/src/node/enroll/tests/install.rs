use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use vendetta_sshio::keys::PrivateKey;

use crate::node::enroll::tests::{Typist, authorize, bare, key, request};
use crate::node::enroll::{EnrollError, Enrolled, Ways, enroll, withdraw};
use crate::node::testing::{Account, Sshd};

async fn by_password(sshd: &Sshd, node_key: &PrivateKey) -> Result<Enrolled, EnrollError> {
    let ways = Ways {
        password: Some(Typist::new(&[Account::PASSWORD])),
        ..bare(node_key)
    };
    enroll(request(sshd), ways).await
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn what_is_missing_is_made_private_and_what_is_there_stays_byte_for_byte() {
    let Some(account) = Account::new() else {
        return;
    };
    let sshd = account.sshd("PasswordAuthentication yes");
    let node_key = key("vendetta node key");
    let own_line = format!("{} vendetta node key\n", node_key.public());
    let file = account.authorized_keys();

    by_password(&sshd, &node_key).await.unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), own_line);
    assert_eq!(mode(&file), 0o600);
    assert_eq!(mode(file.parent().unwrap()), 0o700);
    let owner = std::fs::metadata(&file).unwrap().uid();
    assert_eq!(owner, std::fs::metadata(account.home()).unwrap().uid());

    for there in [
        "# mine\n\nssh-rsa AAAA b\tc  d\\n%s 'x' \n".to_owned(),
        "no newline at the end".to_owned(),
        format!("# {}\n", node_key.public()),
        format!(
            "from=\"10.0.0.1\",command=\"a b\" {} x\n",
            node_key.public()
        ),
        format!("restrict\t{}\n* ?[a-z]\n", key("x").public()),
    ] {
        authorize(&account, &there);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        by_password(&sshd, &node_key).await.unwrap();
        let newline = if there.ends_with('\n') { "" } else { "\n" };
        let now = std::fs::read_to_string(&file).unwrap();
        assert_eq!(now, format!("{there}{newline}{own_line}"));
        assert_eq!(mode(&file), 0o640);
    }
}

#[tokio::test]
async fn a_line_that_is_there_is_not_added_again_whatever_its_comment() {
    let Some(account) = Account::new() else {
        return;
    };
    // Our key is refused for a reason that the file does not know.
    let sshd = account.sshd("PasswordAuthentication yes\nPubkeyAuthentication no");
    let node_key = key("vendetta node key");
    for there in [
        format!("{} other comment\n", node_key.public()),
        format!("  {}", node_key.public().to_string().replace(' ', " \t ")),
    ] {
        authorize(&account, &there);
        let error = by_password(&sshd, &node_key).await.unwrap_err();
        assert!(matches!(error, EnrollError::NotAccepted { .. }), "{error}");
        assert!(error.remedy().unwrap().contains("PubkeyAuthentication"));
        let now = std::fs::read_to_string(account.authorized_keys()).unwrap();
        assert_eq!(now, there);
    }
}

#[tokio::test]
async fn a_key_that_sshd_looks_for_elsewhere_is_found_out() {
    let Some(account) = Account::new() else {
        return;
    };
    let sshd = account.sshd("PasswordAuthentication yes\nAuthorizedKeysFile /etc/nowhere/%u");
    let error = by_password(&sshd, &key("k")).await.unwrap_err();
    assert!(matches!(error, EnrollError::NotAccepted { .. }), "{error}");
    assert!(error.remedy().unwrap().contains("AuthorizedKeysFile"));
}

#[tokio::test]
async fn a_home_that_cannot_be_written_to_is_told() {
    let Some(account) = Account::new() else {
        return;
    };
    let sshd = account.sshd("PasswordAuthentication yes");
    std::os::unix::fs::chown(account.home(), Some(0), Some(0)).unwrap();
    let error = by_password(&sshd, &key("k")).await.unwrap_err();
    assert!(matches!(error, EnrollError::Install { .. }), "{error}");
    assert!(error.to_string().contains("Permission denied"), "{error}");
}

#[tokio::test]
async fn a_user_who_may_run_nothing_is_told_with_the_directive() {
    let Some(account) = Account::new() else {
        return;
    };
    let sshd = account.sshd("PasswordAuthentication yes\nForceCommand echo go away");
    let error = by_password(&sshd, &key("k")).await.unwrap_err();
    assert!(error.to_string().contains("go away"), "{error}");
    assert!(error.remedy().unwrap().contains("ForceCommand"));
}

#[tokio::test]
async fn the_key_is_taken_away_again_and_nothing_else() {
    let Some(account) = Account::new() else {
        return;
    };
    let mut sshd = account.sshd("PasswordAuthentication yes");
    let node_key = key("vendetta node key");
    // Through a link, as where the home is managed by something.
    let real = account.home().join("managed");
    let before = format!("# {} x\nfirst line\n", node_key.public());
    let after = format!("{}\nlast without newline", key("other").public());
    std::fs::write(
        &real,
        format!("{before}restrict {} again\n{after}", node_key.public()),
    )
    .unwrap();
    account.give(&real);
    let ssh = account.home().join(".ssh");
    std::fs::create_dir(&ssh).unwrap();
    account.give(&ssh);
    symlink("../managed", account.authorized_keys()).unwrap();

    by_password(&sshd, &node_key).await.unwrap();
    let link = std::fs::symlink_metadata(account.authorized_keys()).unwrap();
    assert!(link.is_symlink());
    std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o640)).unwrap();

    sshd.key = node_key.clone();
    let node = sshd.node("n1");
    assert!(withdraw(&node, &node_key.public()).await.unwrap());
    let now = std::fs::read_to_string(&real).unwrap();
    assert!(!now.contains("again"), "{now}");
    assert!(now.starts_with(&before) && now.contains(&after), "{now}");
    assert_eq!(now.matches(&node_key.public().to_string()).count(), 1);
    let link = std::fs::symlink_metadata(account.authorized_keys()).unwrap();
    assert!(link.is_symlink());
    assert_eq!(mode(&real), 0o640);
    let names = std::fs::read_dir(account.home()).unwrap().count();
    assert!(!withdraw(&node, &node_key.public()).await.unwrap());
    assert_eq!(std::fs::read_dir(account.home()).unwrap().count(), names);
}
