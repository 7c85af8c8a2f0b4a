//! Mounts, in the two ways in which they are written.

use jsonc_parser::ast::{Object, Value};

/// A name for a volume: that of a directory may have other characters in it.
pub(super) fn volume_name(source: &str) -> String {
    source
        .chars()
        .map(|c| match c {
            c if c.is_ascii_alphanumeric() || "_.-".contains(c) => c,
            _ => '-',
        })
        .collect()
}

/// A mount as `docker run --mount` has it.
#[derive(Debug, Default)]
pub(super) struct Mount {
    pub kind: String,
    pub source: String,
    pub target: String,
}

impl Mount {
    pub(super) fn from_text(text: &str) -> Self {
        let mut mount = Self::default();
        for part in text.split(',') {
            if let Some((key, value)) = part.split_once('=') {
                mount.set(key.trim(), value);
            }
        }
        mount
    }

    pub(super) fn from_object(object: &Object<'_>) -> Self {
        let mut mount = Self::default();
        for property in &object.properties {
            if let Value::StringLit(text) = &property.value {
                mount.set(property.name.as_str(), &text.value);
            }
        }
        mount
    }

    fn set(&mut self, key: &str, value: &str) {
        let field = match key {
            "type" => &mut self.kind,
            "source" | "src" => &mut self.source,
            "target" | "dst" | "destination" => &mut self.target,
            _ => return,
        };
        value.clone_into(field);
    }
}
