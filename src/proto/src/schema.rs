//! JSON schemas of what reads itself from text or from several forms; those of
//! plain structs are derived.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::health::HealthCheck;
use crate::hook::HookCommand;
use crate::spec::AutoUp;
use crate::value::{ByteSize, Span};
use crate::{ServiceName, WorkspaceName};

/// The schema of a value, as `$name` and with `$schema` as its body.
macro_rules! schema {
    ($type:ty, $name:literal, |$generator:ident| $schema:expr) => {
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema($generator: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

/// A DNS label that begins with a letter, as [`crate::name`] has it.
fn name(description: &str) -> Schema {
    json_schema!({
        "description": description,
        "type": "string",
        "pattern": "^[a-z]([a-z0-9-]*[a-z0-9])?$",
        "minLength": 1,
        "maxLength": crate::name::MAX_LENGTH,
        "not": { "const": crate::name::RESERVED },
    })
}

schema!(WorkspaceName, "WorkspaceName", |_generator| name(
    "Name of a workspace, unique on its gateway."
));

schema!(ServiceName, "ServiceName", |_generator| name(
    "Name of a service, unique in its workspace."
));

schema!(ByteSize, "ByteSize", |_generator| json_schema!({
    "description": "A size: a whole number with an optional unit K, M, G or T (powers of 1024).",
    "anyOf": [
        { "type": "integer", "minimum": 0 },
        { "type": "string", "pattern": "^[0-9]+ *([bB]|[kKmMgGtT]([iI]?[bB])?)?$" },
    ],
    "examples": ["512M", "4G"],
}));

schema!(Span, "Span", |_generator| json_schema!({
    "description": "A length of time: a whole number with a unit s, m, h or d.",
    "type": "string",
    "pattern": "^[0-9]+ *[smhd]$",
    "examples": ["30s", "15m", "2h"],
}));

schema!(AutoUp, "AutoUp", |_generator| json_schema!({
    "description": "Whether connecting brings the workspace up: true (unless somebody took it down on purpose), false, or always.",
    "enum": [true, false, "always"],
}));

schema!(HookCommand, "HookCommand", |generator| {
    let command = generator.subschema_for::<HookCommand>();
    json_schema!({
        "description": "A line for the user's shell; a list of a program and its arguments; a list of commands to run one after the other; or a map of commands to run at once.",
        "anyOf": [
            { "type": "string", "pattern": "\\S" },
            {
                "type": "array",
                "minItems": 1,
                "items": { "anyOf": [{ "type": "string" }, command] },
            },
            { "type": "object", "minProperties": 1, "additionalProperties": command },
        ],
        "examples": ["make setup", ["npm", "ci"], { "deps": "npm ci", "db": ["make", "db"] }],
    })
});

schema!(HealthCheck, "HealthCheck", |generator| {
    let span = generator.subschema_for::<Span>();
    let port = json_schema!({ "type": "integer", "minimum": 1, "maximum": u16::MAX });
    json_schema!({
        "description": "How to tell that a service works: an HTTP path on its port, or exactly one of http, tcp and command.",
        "anyOf": [
            { "type": "string", "pattern": "^/" },
            {
                "type": "object",
                "properties": {
                    "http": { "description": "GET of this path on the service's port answers 2xx or 3xx.", "type": "string", "pattern": "^/" },
                    "tcp": { "description": "This TCP port accepts.", "allOf": [port] },
                    "command": { "description": "This shell command exits with status 0.", "type": "string", "pattern": "\\S" },
                    "interval": { "description": "Time between two tries.", "allOf": [span] },
                    "timeout": { "description": "Time after which a try has failed.", "allOf": [span] },
                    "retries": { "description": "Failures in a row that make a service unhealthy.", "type": "integer", "minimum": 1 },
                    "start_period": { "description": "Time after the start in which failures do not count.", "allOf": [span] },
                },
                "oneOf": [
                    { "required": ["http"] },
                    { "required": ["tcp"] },
                    { "required": ["command"] },
                ],
                "additionalProperties": false,
            },
        ],
        "examples": ["/health", { "tcp": 5432, "interval": "5s" }],
    })
});
