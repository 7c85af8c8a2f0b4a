//! What comes on stdin where a project config is asked for: YAML, a dev
//! container's JSON, or an archive of the project that has one of them.

use vendetta_proto::spec::Build;

use super::archive::{Sent as Archive, is_archive, uncompressed};
use super::invalid::Invalid;
use super::source::Project;
use super::{devcontainer, project};

/// Where the config is in an archive of a project, in the order in which it is looked for.
pub const PATHS: [&str; 3] = [
    project::PATH,
    devcontainer::PATHS[0],
    devcontainer::PATHS[1],
];

/// A project config, and the files that came with it.
#[derive(Debug, Default)]
pub struct Sent {
    /// The config.
    pub project: Project,
    archive: Option<(Vec<u8>, String)>,
}

impl Sent {
    /// What an engine needs to build the image; none when no files came along
    /// to `command`.
    ///
    /// # Errors
    /// [`Invalid`]: the Dockerfile is not there, or there are entries that no build needs.
    pub fn context(&self, build: &Build, command: &str) -> Result<Option<Vec<u8>>, Invalid> {
        let Some((bytes, top)) = &self.archive else {
            return Ok(None);
        };
        Archive::open(bytes)?.context(top, build, command).map(Some)
    }
}

/// Reads what was sent. `name` is what the workspace is to be called, where
/// that is known; an archive is read up to `limit` bytes.
///
/// # Errors
/// [`Invalid`], with the position where there is one.
pub fn read(bytes: Vec<u8>, name: Option<&str>, limit: usize) -> Result<Sent, Invalid> {
    if !is_archive(&bytes) {
        let folder = name.unwrap_or("workspace");
        let project = if is_object(&bytes) {
            devcontainer::parse(devcontainer::PATHS[0], &bytes, folder)?
        } else {
            project::parse(project::PATH, &bytes)?
        };
        return Ok(Sent {
            project,
            archive: None,
        });
    }
    let bytes = uncompressed(bytes, limit)?;
    let archive = Archive::open(&bytes)?;
    let most = u64::try_from(project::MAX_SIZE).unwrap_or(u64::MAX);
    let Some((path, content, top)) = find(&archive, most)? else {
        return Err(Invalid::whole(
            "the archive on stdin",
            format!("has neither {} nor {} nor {}", PATHS[0], PATHS[1], PATHS[2]),
            "make it in the project's directory with: tar c .",
        ));
    };
    let folder = match top.as_str() {
        "" => name.unwrap_or("workspace"),
        top => top,
    };
    let project = if path == project::PATH {
        project::parse(path, &content)?
    } else {
        devcontainer::parse(path, &content, folder)?
    };
    Ok(Sent {
        project,
        archive: Some((bytes, top)),
    })
}

/// A config in an archive: where it is in a project, what is in it, and the
/// directory that is the project's.
type Found = (&'static str, Vec<u8>, String);

/// The config in an archive, whose project is its root or the one directory
/// that everything is in.
fn find(archive: &Archive<'_>, most: u64) -> Result<Option<Found>, Invalid> {
    for top in ["", &archive.top] {
        if let Some((path, content)) = archive.first_of(top, &PATHS, most)? {
            return Ok(Some((path, content, top.to_owned())));
        }
    }
    Ok(None)
}

/// Whether the first thing that is neither space nor a JSON comment begins an object.
fn is_object(bytes: &[u8]) -> bool {
    let text = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let mut rest = text.trim_ascii_start();
    loop {
        let end: &[u8] = if rest.starts_with(b"//") {
            b"\n"
        } else if rest.starts_with(b"/*") {
            b"*/"
        } else {
            return rest.first() == Some(&b'{');
        };
        // Not the '*' of the comment's own beginning.
        let body = rest.get(2..).unwrap_or_default();
        let Some(at) = body.windows(end.len()).position(|window| window == end) else {
            return false;
        };
        rest = body
            .get(at + end.len()..)
            .unwrap_or_default()
            .trim_ascii_start();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::{Read as _, Write as _};

    use proptest::prelude::*;
    use tar::{Builder, EntryType, Header};

    use super::super::LocalProject;
    use super::*;

    const LIMIT: usize = 1 << 20;
    const YAML: &str = "name: x\ndocker: {build: {context: app, dockerfile: docker/Dev}}\n";

    /// An archive of files; a name that ends with '/' is a directory, one with an arrow a link.
    fn archive(files: &[(&str, &str)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = Header::new_gnu();
            header.set_mode(0o640);
            header.set_uid(1234);
            header.set_size(0);
            let (path, link) = path
                .split_once(" -> ")
                .map_or((*path, None), |(a, b)| (a, Some(b)));
            let kind = match (link, *content) {
                (Some(_), "hard") => EntryType::Link,
                (Some(_), _) => EntryType::Symlink,
                (None, "fifo") => EntryType::Fifo,
                _ if path.ends_with('/') => EntryType::Directory,
                _ => {
                    header.set_size(content.len() as u64);
                    EntryType::Regular
                }
            };
            header.set_entry_type(kind);
            // Past the checks of the library, as an attacker would.
            header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
            if let Some(link) = link {
                header.as_gnu_mut().unwrap().linkname[..link.len()]
                    .copy_from_slice(link.as_bytes());
            }
            header.set_cksum();
            let content = if kind == EntryType::Regular {
                content
            } else {
                ""
            };
            builder.append(&header, content.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    /// What is in an archive: each path with its content, or its link.
    fn listed(bytes: &[u8]) -> BTreeMap<String, String> {
        let mut listed = BTreeMap::new();
        for entry in tar::Archive::new(bytes).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut content = String::new();
            match entry.link_name().unwrap() {
                Some(link) => content = format!("-> {}", link.display()),
                None => drop(entry.read_to_string(&mut content).unwrap()),
            }
            listed.insert(path, content);
        }
        listed
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn build(sent: &Sent) -> Build {
        sent.project.config.docker.clone().unwrap().build.unwrap()
    }

    #[test]
    fn what_it_is_is_told_by_its_content() {
        for (text, name) in [
            ("name: yaml", "yaml"),
            ("# {\nname: yaml", "yaml"),
            ("{\"name\": \"json\"}", "json"),
            (" // x {\n /* * / **/ /* y */\n{\"name\": \"json\"}", "json"),
            ("\u{feff}{\"name\": \"json\"}", "json"),
        ] {
            let sent = read(text.as_bytes().to_vec(), None, LIMIT).unwrap();
            let found = sent.project.config.name.unwrap();
            assert_eq!(found.as_str(), name, "{text}");
        }
        for text in ["// x", "/* x", "/*/", "{", "{/"] {
            assert!(
                read(text.as_bytes().to_vec(), None, LIMIT).is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn an_archive_of_a_project_has_its_config_and_what_its_image_is_built_from() {
        let files = [
            ("", ""),
            ("./.vendetta/config.yaml", YAML),
            ("./.devcontainer.json", "{"),
            ("./docker/Dev", "FROM x"),
            ("./app/", ""),
            ("./app/.dockerignore", "*.log\n"),
            ("./app/a.log", "log"),
            ("./app/main", "main"),
            ("./app/link -> ../../../etc/passwd", ""),
            ("./app/same -> ./app/main", "hard"),
            ("./other", "other"),
        ];
        let files = &files[1..];
        let top: Vec<_> = files
            .iter()
            .map(|(path, content)| (path.replace("./", "project/"), *content))
            .collect();
        let top: Vec<_> = top
            .iter()
            .map(|(path, content)| (path.as_str(), *content))
            .collect();
        for bytes in [archive(files), gzip(&archive(files)), archive(&top[..])] {
            let sent = read(bytes, None, LIMIT).unwrap();
            assert_eq!(sent.project.config.name.as_ref().unwrap().as_str(), "x");
            let context = sent
                .context(&build(&sent), "config check")
                .unwrap()
                .unwrap();
            let mut listed = listed(&context);
            let link = listed.remove("link").unwrap();
            assert!(
                link.starts_with("-> ") && link.ends_with("etc/passwd"),
                "{link}"
            );
            let want = [
                (".dockerignore", "*.log\n"),
                (".vendetta.Dockerfile", "FROM x"),
                ("main", "main"),
                ("same", "-> main"),
            ];
            let want = want.map(|(path, content)| (path.to_owned(), content.to_owned()));
            assert_eq!(listed, BTreeMap::from(want));
            let again = sent
                .context(&build(&sent), "config check")
                .unwrap()
                .unwrap();
            assert_eq!(context, again, "the same files make the same archive");
        }
    }

    #[test]
    fn a_dev_container_in_an_archive_knows_its_directory() {
        let config = r#"{"build": {"dockerfile": "Dockerfile"}, "workspaceFolder": "/w/${localWorkspaceFolderBasename}"}"#;
        let bytes = archive(&[
            ("site/.devcontainer/devcontainer.json", config),
            ("site/.devcontainer/Dockerfile", "FROM x"),
        ]);
        let sent = read(bytes, Some("name"), LIMIT).unwrap();
        assert_eq!(
            sent.project.config.workspace_folder.as_deref(),
            Some("/w/site")
        );
        let context = sent
            .context(&build(&sent), "config check")
            .unwrap()
            .unwrap();
        assert_eq!(listed(&context)["Dockerfile"], "FROM x");
    }

    #[test]
    fn an_archive_that_plays_tricks_or_lacks_something_is_refused() {
        for (files, words) in [
            (vec![("../.vendetta/config.yaml", YAML)], "leads out"),
            (vec![("a/../../b", "x")], "leads out"),
            (vec![("/etc/passwd", "x")], "absolute"),
            (vec![("./\u{e9}\u{0}", "x"), ("main", "x")], "neither"),
            (vec![("main", "x")], "neither"),
            (
                vec![("a/.vendetta/config.yaml", YAML), ("b/x", "x")],
                "neither",
            ),
        ] {
            let error = read(archive(&files), None, LIMIT).unwrap_err();
            assert!(error.to_string().contains(words), "{files:?}: {error}");
            assert!(error.remedy.is_some(), "{files:?}: {error}");
        }
        for (file, words) in [
            (("app/x", "x"), "no docker/Dev"),
            (("app/pipe", "fifo"), "neither a file"),
            (("app/x -> docker/Dev", "hard"), "hard link"),
        ] {
            let mut files = vec![(".vendetta/config.yaml", YAML), file];
            if !words.starts_with("no ") {
                files.push(("docker/Dev", "FROM x"));
            }
            let sent = read(archive(&files), None, LIMIT).unwrap();
            let error = sent.context(&build(&sent), "config check").unwrap_err();
            assert!(error.to_string().contains(words), "{file:?}: {error}");
        }
        let bomb = gzip(&vec![0; 2 * LIMIT]);
        let error = read(bomb, None, LIMIT).unwrap_err();
        assert!(error.to_string().contains("larger than 1 MiB"), "{error}");
        let huge = "#".repeat(project::MAX_SIZE + 1);
        read(archive(&[(".vendetta/config.yaml", &huge)]), None, LIMIT).unwrap_err();
        let cut = archive(&[(".vendetta/config.yaml", YAML)]);
        read(cut[..600].to_vec(), None, LIMIT).unwrap_err();
    }

    #[test]
    fn what_the_local_command_packs_is_what_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, content: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        };
        let long = format!("app/{}/{}", "d".repeat(120), "f".repeat(120));
        put(".vendetta/config.yaml", YAML);
        put("docker/Dev", "FROM x");
        put("app/.dockerignore", "target\n!target/keep\n");
        put("app/target/big", "big");
        put("app/target/keep", "keep");
        put("app/main", "main");
        put(&long, "long");
        put("secret", "secret");
        std::os::unix::fs::symlink("main", dir.path().join("app/link")).unwrap();
        let config = project::parse("x", YAML.as_bytes()).unwrap().config;
        let build = config.docker.unwrap().build.unwrap();
        for top in ["", "my project"] {
            let mut bytes = Vec::new();
            let local = LocalProject {
                root: dir.path(),
                top,
                config: (project::PATH, YAML.as_bytes()),
                build: Some(&build),
            };
            local.pack(&mut bytes).unwrap();
            let paths: Vec<String> = listed(&bytes).into_keys().collect();
            assert!(
                !paths
                    .iter()
                    .any(|path| path.contains("secret") || path.contains("big")),
                "{paths:?}"
            );
            let sent = read(bytes, None, LIMIT).unwrap();
            let context = listed(&sent.context(&build, "config check").unwrap().unwrap());
            for (path, content) in [
                (".vendetta.Dockerfile", "FROM x"),
                ("main", "main"),
                ("link", "-> main"),
                ("target/keep", "keep"),
                (&long[4..], "long"),
            ] {
                assert_eq!(
                    context.get(path).map(String::as_str),
                    Some(content),
                    "{path}"
                );
            }
            assert!(!context.contains_key("target/big"));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut bytes: Vec<u8>, magic: bool) {
            if magic {
                bytes.resize(1024, b'0');
                bytes[257..262].copy_from_slice(b"ustar");
            }
            let _ = read(bytes.clone(), None, LIMIT);
            let _ = read(gzip(&bytes), None, LIMIT);
        }
    }
}
