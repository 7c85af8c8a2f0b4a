//! The first admin: without one nobody could let anybody in.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::bail;
use vendetta_proto::UserName;
use vendetta_sshio::keys::PublicKey;

use crate::access::Role;
use crate::cannot_start::CannotStart;
use crate::store::Store;

/// Gives a store without users its first admin, with the keys of `admin_key`,
/// else those of the operator's ~/.ssh.
///
/// # Errors
/// When there is no key to be found, or one cannot be read.
pub async fn ensure(store: &Store, admin_key: Option<&Path>) -> anyhow::Result<()> {
    if !store.users().is_empty() {
        if let Some(path) = admin_key {
            tracing::info!("{} not needed: there are users already", path.display());
        }
        return Ok(());
    }
    let keys = match admin_key {
        Some(path) => read(path)?,
        None => operators_keys(),
    };
    if keys.is_empty() {
        bail!(CannotStart::unusable(
            "there is no key for the first admin",
            "make one with: ssh-keygen -t ed25519, or name one with --admin-key FILE.pub",
        ));
    }
    let name = user_name(std::env::var("USER").ok().as_deref());
    store.add_user(&name, Role::Admin).await?;
    for key in &keys {
        store.add_key(&name, key, &key.comment()).await?;
        tracing::info!(user = %name, key = %key.fingerprint(), "first admin");
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Vec<PublicKey>> {
    let file = path.display();
    let unusable = |problem: String, remedy: String| {
        CannotStart::unusable(format!("admin key {file}: {problem}"), remedy)
    };
    let public = || "name a file of public keys, such as ~/.ssh/id_ed25519.pub".to_owned();
    let text = fs::read_to_string(path).map_err(|error| unusable(error.to_string(), public()))?;
    if text.contains("PRIVATE KEY-----") {
        let problem = "this is a private key, which stays where it is".to_owned();
        bail!(unusable(
            problem,
            format!("name its public half: --admin-key {file}.pub")
        ));
    }
    let lines = text.lines().map(str::trim);
    let keys = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys = keys.map(|line| {
        let key = line.parse::<PublicKey>();
        key.map_err(|error| unusable(error.to_string(), public()).into())
    });
    keys.collect()
}

/// The public keys in ~/.ssh; what is no key there is somebody else's business.
fn operators_keys() -> Vec<PublicKey> {
    let Some(home) = std::env::var_os("HOME") else {
        return Vec::new();
    };
    let Ok(entries) = fs::read_dir(PathBuf::from(home).join(".ssh")) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "pub"))
        .collect();
    paths.sort();
    let mut keys = Vec::new();
    for key in paths.iter().filter_map(|path| read(path).ok()).flatten() {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

/// The operator's own name where it serves as a user name here, else "admin".
fn user_name(operator: Option<&str>) -> UserName {
    let own = operator.and_then(|name| name.parse().ok());
    own.unwrap_or_else(UserName::admin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_admin_has_the_operators_name_where_that_is_one() {
        assert_eq!(user_name(Some("alice")).as_str(), "alice");
        for other in [None, Some(""), Some("Alice Smith"), Some("vendetta")] {
            assert_eq!(user_name(other).as_str(), "admin");
        }
    }

    #[test]
    fn a_key_file_may_hold_several_keys_and_comments_but_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.pub");
        let key = vendetta_sshio::keys::PrivateKey::generate_ed25519("k")
            .unwrap()
            .public();
        fs::write(&path, format!("# mine\n{key} me@here\n\n{key}\n")).unwrap();
        assert_eq!(read(&path).unwrap(), [key.clone(), key]);
        fs::write(&path, "-----BEGIN OPENSSH PRIVATE KEY-----\n").unwrap();
        let private = read(&path).unwrap_err().to_string();
        assert!(private.contains("private key"), "{private}");
        for other in ["ssh-ed25519 AAAA", "hello"] {
            fs::write(&path, other).unwrap();
            assert!(read(&path).is_err(), "{other}");
        }
    }
}
