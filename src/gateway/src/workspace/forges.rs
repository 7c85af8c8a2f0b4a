//! Host keys of public Git services, so that the first clone asks nothing and
//! trusts nobody by chance.

/// Lines of known_hosts (sshd(8)), as the services publish them:
/// docs.github.com, docs.gitlab.com, support.atlassian.com, docs.codeberg.org, man.sr.ht.
pub(super) const KNOWN_HOSTS: &[&str] = &[
    "github.com ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl",
    "gitlab.com ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAfuCHKVTjquxvt6CM6tdG4SLp1Btn/nOeHHE5UOzRdf",
    "bitbucket.org ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIazEu89wgQZ4bqs3d63QSMzYVa0MuJ2e2gKTKqu+UUO",
    "codeberg.org ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIVIC02vnjFyL+I4RHfvIGNtOgJMe769VTF1VR4EB3ZB",
    "git.sr.ht ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMZvRd4EtM7R+IHVMWmDkVU3VLQTSwQDSAvW0t2Tkj60",
];

#[cfg(test)]
mod tests {
    use vendetta_sshio::keys::PublicKey;

    use super::*;

    #[test]
    fn every_line_is_a_host_and_a_key() {
        for line in KNOWN_HOSTS {
            let (host, key) = line.split_once(' ').unwrap();
            assert!(host.contains('.'), "{line}");
            let parsed: PublicKey = key.parse().unwrap();
            assert_eq!(parsed.to_string().trim(), key);
        }
    }
}
