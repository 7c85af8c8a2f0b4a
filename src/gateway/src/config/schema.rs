//! config/vendetta.schema.json is what the types say, and says of a config what
//! the parser says; samples are in tests/fixtures.

use std::fs;
use std::path::{Path, PathBuf};

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};
use vendetta_proto::spec::ProjectConfig;

use super::{devcontainer, project};
const FILE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../config/vendetta.schema.json"
);

/// The samples of a directory of tests/fixtures: name and content.
fn samples(dir: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures")
        .join(dir);
    let mut paths: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty());
    let name = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
    paths
        .iter()
        .map(|path| (name(path), fs::read(path).unwrap()))
        .collect()
}

fn schema() -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut schema = generator.into_root_schema_for::<ProjectConfig>().to_value();
    schema["title"] = json!("vendetta project config, .vendetta/config.yaml");
    schema
}

#[test]
fn the_schema_is_current() {
    let text = format!("{:#}\n", schema());
    if std::env::var_os("VENDETTA_REGENERATE").is_some() {
        fs::write(FILE, &text).unwrap();
    }
    assert!(
        fs::read_to_string(FILE).unwrap_or_default() == text,
        "config/vendetta.schema.json is not current: VENDETTA_REGENERATE=1 cargo test -p vendetta the_schema_is_current"
    );
}

#[test]
fn the_schema_says_of_a_config_what_the_parser_says() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    for (dir, well_formed) in [
        ("configs/good", true),
        ("configs/impossible", true),
        ("configs/malformed", false),
    ] {
        for (name, content) in samples(dir) {
            let text = String::from_utf8(content.clone()).unwrap();
            let value: Value = serde_saphyr::from_str(&text).unwrap();
            let errors: Vec<_> = validator
                .iter_errors(&value)
                .map(|e| e.to_string())
                .collect();
            assert_eq!(errors.is_empty(), well_formed, "{dir}/{name}: {errors:?}");
            assert_eq!(
                project::parse(&name, &content).is_ok(),
                well_formed,
                "{dir}/{name}"
            );
        }
    }
}

#[test]
fn what_is_stored_of_a_config_is_a_config() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    for (name, content) in samples("configs/good") {
        let config = project::parse(&name, &content).unwrap().config;
        let stored = serde_json::to_value(&config).unwrap();
        let error = validator
            .validate(&stored)
            .err()
            .map(|error| error.to_string());
        assert_eq!(error, None, "{name}");
        assert_eq!(
            serde_json::from_value::<ProjectConfig>(stored).unwrap(),
            config
        );
    }
}

#[test]
fn dev_container_configs_come_to_what_is_written_down() {
    for (name, content) in samples("devcontainers") {
        let said = match devcontainer::parse(devcontainer::PATHS[0], &content, "app") {
            Ok(project) => {
                let listed: String = project
                    .not_honoured
                    .iter()
                    .map(|part| format!("{part}\n"))
                    .collect();
                format!(
                    "{:#}\n{listed}",
                    serde_json::to_value(project.config).unwrap()
                )
            }
            Err(error) => error.render(100, true, false),
        };
        insta::assert_snapshot!(format!("devcontainer_{name}"), said);
    }
}
