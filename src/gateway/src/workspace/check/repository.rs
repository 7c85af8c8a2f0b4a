//! Repositories that are cloned.

/// What git may be told to clone: nothing that it would take for an option, and
/// none of its transports that run a program of the URL's choice (gitremote-helpers(7), ext::).
pub(super) fn check_repository(url: &str) -> Result<(), &'static str> {
    if url.starts_with('-') {
        return Err("begins with '-', as an option does");
    }
    if url.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("has a space or a control character");
    }
    let (host, path) = match url.split_once("://") {
        Some(("https" | "http" | "ssh" | "git", rest)) => {
            rest.split_once('/').unwrap_or((rest, ""))
        }
        Some(("file", path)) => ("localhost", path),
        Some(_) => return Err("has a scheme that is not used"),
        None => url.split_once(':').ok_or("is not a URL")?,
    };
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    if host.is_empty() || host.starts_with('-') || host.contains('/') {
        return Err("has no host");
    }
    if path.is_empty() || path.starts_with(['-', ':']) {
        return Err("has no path");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_a_url_that_git_cannot_take_for_anything_else() {
        for good in [
            "https://example.org/a/b.git",
            "https://user@example.org:8443/a",
            "ssh://git@example.org:2222/a.git",
            "git@example.org:a/b.git",
            "example.org:a",
            "file:///srv/a.git",
        ] {
            assert_eq!(check_repository(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "-oProxyCommand=x",
            "--upload-pack=x",
            "a",
            "/a",
            "ext::sh -c x",
            "ext::sh",
            "fd::17",
            "ssh://-oProxyCommand=x/a",
            "ssh://x@-oProxyCommand=x/a",
            "-x@host:a",
            "x@-host:a",
            "host:-a",
            "host:",
            "https://",
            "https://host",
            "https:///a",
            "javascript://host/a",
            "https://host/a b",
            "https://host/a\n",
            "./a:b",
        ] {
            assert!(check_repository(bad).is_err(), "{bad}");
        }
    }
}
