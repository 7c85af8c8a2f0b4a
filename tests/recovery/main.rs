//! `kill -9` at any point of a workspace's life loses nothing and leaves nothing.
//!
//! The part of the gateway that is killed is a process of its own: this test's
//! executable again, told by its environment what to ask of a real engine.

mod qemu;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vendetta::access::{Action, Authorized, Permissions, Principal, Role};
use vendetta::events::Events;
use vendetta::node::Probe;
use vendetta::store::{NodeRow, Store};
use vendetta::workspace::{
    Agent, Desired, NewConfig, Operation, Overrides, Phase, PortSettings, Progress, Settings, Spec,
    WorkspaceRef, Workspaces,
};
use vendetta_proto::spec::ProviderKind;
use vendetta_sshio::keys::PrivateKey;
use vendetta_tests::{
    BOOT, BUSYBOX, Engine, Gateway, Lxc, LxcEngine, Node, PATIENCE, Run, Seeded, full,
};

/// Says what a child does: directory, engine's socket, provider, node and requests.
const ROLE: &str = "VENDETTA_RECOVERY_ROLE";

const NAME: &str = "web";

/// Variable of a config that came with a rebuild.
const GENERATION: &str = "GENERATION";

/// A gateway without its SSH side.
struct Core {
    workspaces: Workspaces,
    store: Store,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

impl Core {
    async fn start(dir: &Path, docker: &Path, lxc: &Path) -> Self {
        let state = dir.join("state");
        let store = Store::open(&state.join("vendetta.db")).unwrap();
        if store.users().is_empty() {
            store
                .add_user(&"alice".parse().unwrap(), Role::Admin)
                .await
                .unwrap();
        }
        let key = |name: &str| PrivateKey::load_or_generate(&state.join(name), name).unwrap();
        let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
        let workspaces = Workspaces::start(Settings {
            lxc_socket: Some(lxc.to_owned()),
            store: store.clone(),
            host_ca: key("host_ca"),
            agent_key: key("agent_key"),
            user_authorities: Vec::new(),
            agent_dir: Gateway::binary("vendetta-agent")
                .parent()
                .map(Path::to_owned),
            state_dir: state.clone(),
            docker_socket: docker.to_owned(),
            qemu: qemu::settings(),
            allow_host: true,
            ports: PortSettings {
                range: 20000..=29999,
                bind: "127.0.0.1".parse().unwrap(),
            },
            node_key: key("node_key"),
            events: Events::default(),
            tracker: tracker.clone(),
            cancel: cancel.clone(),
        })
        .await
        .unwrap();
        Self {
            workspaces,
            store,
            tracker,
            cancel,
        }
    }

    async fn create(&self, provider: ProviderKind) {
        self.create_on(provider, None).await;
    }

    /// On a node; none: the gateway's own machine.
    async fn create_on(&self, provider: ProviderKind, node: Option<&str>) {
        let overrides = Overrides {
            provider: Some(provider),
            remote: node.map(|name| name.parse().unwrap()),
            image: match provider {
                ProviderKind::Docker => Some(BUSYBOX.to_owned()),
                ProviderKind::Lxc => Some("busybox".to_owned()),
                _ => None,
            },
            ..Overrides::default()
        };
        let name = Some(NAME.parse().unwrap());
        let config = qemu::config(provider);
        let spec = Spec::resolve(config, overrides).unwrap();
        self.workspaces
            .create(&alice(), name, spec, None)
            .await
            .unwrap();
    }

    fn find(&self) -> Option<Authorized<WorkspaceRef>> {
        self.workspaces.find(&alice(), Action::Operate, NAME).ok()
    }

    fn workspace(&self) -> Authorized<WorkspaceRef> {
        self.find().expect("the workspace is there")
    }

    async fn ask(&self, request: &str) -> Operation {
        let workspace = self.workspace();
        match request {
            "up" => self.workspaces.up(&workspace, None).await,
            "down" => self.workspaces.down(&workspace).await,
            "rebuild" => {
                // From another config each time, which says what generation it is for.
                let rows = self.store.workspaces().await.unwrap();
                let next = rows[0].record.generation + 1;
                let env = vec![(GENERATION.to_owned(), next.to_string())];
                let changed = Overrides {
                    env,
                    ..Overrides::default()
                };
                let config = NewConfig::Changed(changed);
                let rebuilding = self.workspaces.rebuild(&workspace, Some(config), None);
                rebuilding.await
            }
            "destroy" => self.workspaces.destroy(&workspace).await,
            other => panic!("{other}"),
        }
    }

    async fn done(&self, request: &str) {
        let outcome = tokio::time::timeout(BOOT, self.ask(request).await.outcome());
        outcome
            .await
            .unwrap_or_else(|_| panic!("{request} hangs"))
            .unwrap();
    }

    fn phase(&self) -> Phase {
        self.workspaces.status(&self.workspace()).unwrap().state
    }

    async fn phase_becomes(&self, phase: Phase) {
        let began = Instant::now();
        while self.phase() != phase {
            assert!(began.elapsed() < BOOT, "{} and not {phase}", self.phase());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.tracker.close();
        tokio::time::timeout(PATIENCE, self.tracker.wait())
            .await
            .expect("every task ends");
    }
}

fn alice() -> Principal {
    Principal {
        user: "alice".parse().unwrap(),
        role: Role::Admin,
        key_fingerprint: "SHA256:test".to_owned(),
        permissions: Permissions::default(),
    }
}

/// Directory and engines of one test, and where its workspace is.
struct Place {
    dir: tempfile::TempDir,
    engine: Option<Arc<Engine>>,
    lxc: Option<Arc<LxcEngine>>,
    provider: ProviderKind,
    /// None: the gateway's own machine.
    node: Option<Node>,
}

impl Place {
    fn new(provider: ProviderKind) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("vendetta-r-")
            .tempdir_in("/tmp")
            .unwrap();
        Self {
            dir,
            engine: (provider == ProviderKind::Docker).then(Engine::shared),
            lxc: None,
            provider,
            node: None,
        }
    }

    fn lxc(engine: Lxc) -> Self {
        let mut place = Self::new(ProviderKind::Lxc);
        place.lxc = Some(LxcEngine::shared(engine));
        place
    }

    fn engine(&self) -> &Engine {
        self.engine.as_deref().expect("a place with Docker")
    }

    /// Sockets of Docker and of Incus or LXD, or of nobody.
    fn sockets(&self) -> [PathBuf; 2] {
        let nobody = || self.dir.path().join("nobody.sock");
        let docker = self.engine.as_ref().map(|engine| engine.socket());
        let lxc = self.lxc.as_ref().map(|engine| engine.socket());
        [docker, lxc].map(|socket| socket.unwrap_or_else(nobody))
    }

    /// With a node that was added before, reached as a user who is not root.
    async fn on(node: Node, provider: ProviderKind) -> Self {
        let mut place = Self::new(provider);
        let state = place.dir.path().join("state");
        let store = Store::open(&state.join("vendetta.db")).unwrap();
        // The node's users accept it; keys are copied with their modes.
        std::fs::copy(node.user_key(), state.join("node_key")).unwrap();
        let host_key = node.run(&["cat", "/etc/ssh/ssh_host_ed25519_key.pub"]).ok();
        let probe = Probe {
            home: HOME.into(),
            ..Probe::default()
        };
        let row = NodeRow {
            name: node.name().parse().unwrap(),
            user: "dev".to_owned(),
            host: node.address().to_string(),
            port: 22,
            jump: None,
            host_key: host_key.text().parse().unwrap(),
            allow_host: true,
            probe: serde_json::to_value(probe).unwrap(),
            created: jiff::Timestamp::now(),
        };
        store.save_node(&row).await.unwrap();
        place.node = Some(node);
        place
    }

    async fn core(&self) -> Core {
        let [docker, lxc] = self.sockets();
        Core::start(self.dir.path(), &docker, &lxc).await
    }

    async fn create(&self, core: &Core) {
        let remote = self.node.as_ref().map(Node::name);
        core.create_on(self.provider, remote).await;
    }

    /// A process that makes the workspace if need be and does `requests`.
    fn child(&self, requests: &str) -> Child {
        let [docker, lxc] = self.sockets();
        let role = [
            self.dir.path().display().to_string(),
            docker.display().to_string(),
            lxc.display().to_string(),
            self.provider.to_string(),
            self.node
                .as_ref()
                .map_or(String::new(), |node| node.name().to_owned()),
            requests.to_owned(),
        ]
        .join("\n");
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_gateway_to_be_killed", "--nocapture"])
            .env(ROLE, role)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn gateway_id(&self) -> String {
        let id = std::fs::read_to_string(self.dir.path().join("state/id")).unwrap_or_default();
        id.trim().to_owned()
    }

    /// All that is left of any workspace: containers, volumes, directories, processes.
    fn resources(&self) -> Vec<String> {
        let id = self.gateway_id();
        let label = format!("vendetta.gateway={id}");
        let (mut found, workspaces) = match &self.node {
            None => {
                let docker = self.engine.as_ref().map(|engine| engine.labelled(&label));
                let lxc = self.lxc.as_ref();
                let lxc = lxc.map(|engine| engine.labelled(LXC_LABEL, &id));
                let found = docker.or(lxc).unwrap_or_default();
                (found, self.dir.path().join("state/w"))
            }
            Some(node) if self.provider == ProviderKind::Docker => {
                (node.labelled(&label), on_node(&id))
            }
            Some(_) => (Vec::new(), on_node(&id)),
        };
        let workspaces = workspaces.display().to_string();
        let agents = format!("--config {workspaces}/");
        for look in [
            ["find", &workspaces, "-mindepth", "1", "-maxdepth", "1"].as_slice(),
            &["pgrep", "-f", "-a", "--", &agents],
            &["pgrep", "-f", "-a", "--", &qemu::processes(&workspaces)],
        ] {
            let said = match &self.node {
                None => Run::new(look[0]).args(&look[1..]),
                Some(node) => node.run(look),
            };
            found.extend(said.finish().text().lines().map(str::to_owned));
        }
        found
    }
}

/// What instances and volumes of Incus and LXD carry the gateway's id as.
const LXC_LABEL: &str = "user.vendetta.gateway";

/// Home of the user as whom the node is reached.
const HOME: &str = "/home/dev";

/// Where the files of the workspaces of a gateway of this id are on its node.
fn on_node(id: &str) -> PathBuf {
    Path::new(HOME).join(".vendetta").join(id).join("w")
}

impl Drop for Place {
    fn drop(&mut self) {
        let id = self.gateway_id();
        if let Some(engine) = &self.engine {
            engine.remove_labelled(&format!("vendetta.gateway={id}"));
        }
        if let Some(engine) = &self.lxc {
            engine.remove_labelled(LXC_LABEL, &id);
        }
    }
}

/// Not a scenario: the process that the others kill.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_to_be_killed() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let mut words = role.split('\n').map(str::to_owned);
    let dir = PathBuf::from(words.next().unwrap());
    let [docker, lxc] = [(); 2].map(|()| PathBuf::from(words.next().unwrap()));
    let provider = match words.next().unwrap().as_str() {
        "docker" => ProviderKind::Docker,
        "lxc" => ProviderKind::Lxc,
        "qemu" => ProviderKind::Qemu,
        "host" => ProviderKind::Host,
        other => panic!("{other}"),
    };
    let node = words.next().filter(|name| !name.is_empty());
    let core = Core::start(&dir, &docker, &lxc).await;
    if core.find().is_none() {
        core.create_on(provider, node.as_deref()).await;
    }
    for request in words.next().unwrap().split(' ') {
        let _ = core.ask(request).await.outcome().await;
    }
    // Whoever started it kills it.
    tokio::time::sleep(Duration::from_secs(120)).await;
}

/// Kills a gateway `times` times while it works; each time takes its work up
/// and brings the workspace to a known state again.
async fn killed_at_random(place: Place, times: u64) {
    let mut random = Seeded::new(0x5eed);
    for round in 0..times {
        let requests = [
            "up",
            "up down",
            "up rebuild",
            "up destroy",
            "up down up",
            "rebuild",
            "down",
            "destroy",
        ];
        let requests = requests[usize::try_from(random.below(requests.len() as u64)).unwrap()];
        let longest = qemu::longest_pause(place.provider).unwrap_or(1500);
        let pause = Duration::from_millis(20 + random.below(longest));
        let mut child = place.child(requests);
        tokio::time::sleep(pause).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let told = format!("round {round}: {requests:?} killed after {pause:?}");

        let core = place.core().await;
        let rows = core.store.workspaces().await.unwrap();
        for row in &rows {
            // What it is made from is saved with the generation that it is made for, or not at all.
            let generation = row.record.generation;
            let expected = (generation > 1).then(|| generation.to_string());
            assert_eq!(row.config.env.get(GENERATION), expected.as_ref(), "{told}");
        }
        match rows.first().map(|row| row.record.desired) {
            None => {
                // Killed before it was made, or after it was gone: then nothing is left.
                let began = Instant::now();
                while !place.resources().is_empty() {
                    assert!(
                        began.elapsed() < PATIENCE,
                        "{told}: {:?}",
                        place.resources()
                    );
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                place.create(&core).await;
            }
            Some(Desired::Destroyed) => {
                let began = Instant::now();
                while core.find().is_some() {
                    assert!(began.elapsed() < BOOT, "{told}: not destroyed");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                assert_eq!(place.resources(), Vec::<String>::new(), "{told}");
                place.create(&core).await;
            }
            Some(Desired::Created) => {}
            Some(Desired::Running) => core.phase_becomes(Phase::Running).await,
            Some(Desired::Down | Desired::Idle) => core.phase_becomes(Phase::Stopped).await,
        }
        core.done("up").await;
        assert_eq!(core.phase(), Phase::Running, "{told}");
        let resources = place.resources();
        // One container or instance and one volume, beside the directory; or one process.
        let expected = match place.provider {
            ProviderKind::Docker | ProviderKind::Lxc => 3,
            _ => 2,
        };
        assert_eq!(resources.len(), expected, "{told}: {resources:?}");
        core.stop().await;
    }
    let core = place.core().await;
    core.done("destroy").await;
    assert_eq!(place.resources(), Vec::<String>::new());
    core.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_points_a_docker_workspace_is_neither_lost_nor_left_behind() {
    let place = Place::new(ProviderKind::Docker);
    killed_at_random(place, if full() { 100 } else { 20 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_points_a_host_workspace_is_neither_lost_nor_left_behind() {
    let place = Place::new(ProviderKind::Host);
    killed_at_random(place, if full() { 100 } else { 20 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_points_nothing_is_lost_or_left_behind_in_a_container_of_incus() {
    let place = Place::lxc(Lxc::Incus);
    killed_at_random(place, if full() { 50 } else { 8 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_points_nothing_is_lost_or_left_behind_in_a_container_of_lxd() {
    let place = Place::lxc(Lxc::Lxd);
    killed_at_random(place, if full() { 50 } else { 8 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_points_nothing_is_lost_or_left_behind_on_a_node_with_docker() {
    let place = Place::on(Node::with_docker(), ProviderKind::Docker).await;
    killed_at_random(place, if full() { 50 } else { 6 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_points_nothing_is_lost_or_left_behind_on_a_node() {
    let place = Place::on(Node::start(), ProviderKind::Host).await;
    killed_at_random(place, if full() { 50 } else { 6 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_ups_join_one_operation_and_both_see_it_from_its_start() {
    let place = Place::new(ProviderKind::Docker);
    let core = place.core().await;
    core.create(ProviderKind::Docker).await;
    let (one, two) = tokio::join!(core.ask("up"), core.ask("up"));
    let all = |mut operation: Operation| async move {
        let mut seen = Vec::new();
        while let Some(progress) = operation.next().await {
            seen.push(progress);
        }
        operation.outcome().await.unwrap();
        seen
    };
    let (one, two) = tokio::join!(all(one), all(two));
    assert_eq!(one, two);
    assert!(
        matches!(&one[0], Progress::Started { step } if step == "install the agent on local"),
        "{one:?}"
    );
    let boot = core.store.workspaces().await.unwrap()[0].record.boot;
    assert_eq!(boot, 1, "one start");
    core.done("destroy").await;
    core.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connecting_brings_up_what_is_not_down_on_purpose() {
    let place = Place::new(ProviderKind::Docker);
    let core = place.core().await;
    core.create(ProviderKind::Docker).await;
    let workspace = core.workspace();
    let agent = |core: &Core| {
        let (workspaces, workspace) = (core.workspaces.clone(), workspace.clone());
        async move { workspaces.agent(&workspace).await }
    };
    // Never started: started.
    let Ok(Agent::Starting(operation)) = agent(&core).await else {
        panic!("not starting")
    };
    operation.outcome().await.unwrap();
    let Ok(Agent::Ready(first)) = agent(&core).await else {
        panic!("not ready")
    };
    // Ended by itself: noticed, told, started again as another boot.
    let name = format!("vendetta-{NAME}-{}", first.id);
    place.engine().docker(&["kill", &name]).ok();
    core.phase_becomes(Phase::Stopped).await;
    let note = core.workspaces.status(&workspace).unwrap().note.unwrap();
    assert!(note.contains("137"), "{note}");
    let Ok(Agent::Starting(operation)) = agent(&core).await else {
        panic!("not starting")
    };
    operation.outcome().await.unwrap();
    let Ok(Agent::Ready(second)) = agent(&core).await else {
        panic!("not ready")
    };
    assert!(second.boot > first.boot);
    // Down on purpose: stays down and says how to bring it up; so it does after a restart.
    core.done("down").await;
    for _ in 0..2 {
        let error = agent(&core).await.unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert_eq!(
            error.remedy.as_deref(),
            Some("ssh vendetta workspace up web")
        );
    }
    core.stop().await;
    let core = place.core().await;
    core.phase_becomes(Phase::Stopped).await;
    assert_eq!(agent(&core).await.unwrap_err().exit_code(), 4);
    core.done("destroy").await;
    core.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_down_during_an_up_wins_and_the_up_is_told() {
    let place = Place::new(ProviderKind::Docker);
    let core = place.core().await;
    core.create(ProviderKind::Docker).await;
    let up = core.ask("up").await;
    let down = core.ask("down").await;
    let error = up.outcome().await.unwrap_err();
    assert_eq!(error.exit_code(), 4);
    down.outcome().await.unwrap();
    assert_eq!(core.phase(), Phase::Stopped);
    core.done("destroy").await;
    assert_eq!(place.resources(), Vec::<String>::new());
    core.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_away_is_an_error_with_a_remedy_and_changes_nothing() {
    let place = Place::new(ProviderKind::Docker);
    let nowhere = place.dir.path().join("docker.sock");
    let core = Core::start(place.dir.path(), &nowhere, &nowhere).await;
    core.create(ProviderKind::Docker).await;
    let error = core.ask("up").await.outcome().await.unwrap_err();
    assert_eq!(error.exit_code(), 5, "{error}");
    assert!(error.remedy.unwrap().contains("start docker"));
    assert_eq!(core.phase(), Phase::Failed);
    core.stop().await;
    // With its engine back it goes on by itself: it was asked to be up.
    let core = place.core().await;
    core.phase_becomes(Phase::Running).await;
    core.done("destroy").await;
    core.stop().await;
}
