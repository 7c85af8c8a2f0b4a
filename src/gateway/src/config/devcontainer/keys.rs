//! The keys of a dev container config, as its reference names them.

/// Keys of which nothing comes, and why.
pub(super) const NOT_HONOURED: [(&str, &str); 23] = [
    ("appPort", "use forwardPorts"),
    (
        "capAdd",
        "a workspace gets no capabilities of the engine's machine",
    ),
    (
        "customizations",
        "they are for an editor, which reads them itself",
    ),
    ("devPort", "it is of an old format"),
    (
        "extensions",
        "they are for an editor, which reads them itself",
    ),
    ("features", "put what they install into a Dockerfile"),
    (
        "initializeCommand",
        "it would run on your own machine; run it before you create the workspace",
    ),
    ("otherPortsAttributes", "ports are mapped alike"),
    (
        "overrideCommand",
        "the first process is always vendetta's agent",
    ),
    ("overrideFeatureInstallOrder", "there are no features"),
    (
        "portsAttributes",
        "ports are mapped alike, and have no labels",
    ),
    (
        "privileged",
        "a workspace has no power over the engine's machine",
    ),
    (
        "runArgs",
        "how the engine runs a workspace is the gateway's to say",
    ),
    ("runServices", "there is no compose file"),
    ("secrets", "give variables with --env"),
    (
        "securityOpt",
        "a workspace has no power over the engine's machine",
    ),
    ("service", "there is no compose file"),
    (
        "settings",
        "they are for an editor, which reads them itself",
    ),
    (
        "shutdownAction",
        "a workspace runs until it is taken down or its idle_timeout is over",
    ),
    (
        "updateRemoteUserUID",
        "no directory of yours is mounted whose owner it would have to match",
    ),
    (
        "userEnvProbe",
        "sessions have the environment of the user's login shell",
    ),
    ("waitFor", "sessions may begin when hooks.create is done"),
    (
        "workspaceMount",
        "the workspace's disk is mounted at workspaceFolder",
    ),
];

/// Keys that are taken over.
pub(super) const HONOURED: [&str; 21] = [
    "build",
    "containerEnv",
    "containerUser",
    "context",
    "dockerComposeFile",
    "dockerFile",
    "forwardPorts",
    "hostRequirements",
    "image",
    "init",
    "mounts",
    "name",
    "onCreateCommand",
    "postAttachCommand",
    "postCreateCommand",
    "postStartCommand",
    "remoteEnv",
    "remoteUser",
    "updateContentCommand",
    "workspaceFolder",
    "$schema",
];
