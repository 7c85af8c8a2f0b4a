//! The scenarios.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use tokio::time::{Instant, sleep, timeout};
use vendetta::provider::{LogOptions, Placement, ProviderError};
use vendetta::workspace::Found;
use vendetta_tests::{PATIENCE, Seeded};

use crate::subject::Subject;

const GRACE: Duration = Duration::from_secs(10);

pub async fn what_does_not_exist_is_absent_and_its_removal_is_no_error(subject: &Subject) {
    let provider = &subject.provider;
    let environment = subject.environment();
    let id = &environment.id;
    assert!(!provider.probe().await.unwrap().is_empty());
    assert_eq!(provider.inspect(id).await.unwrap(), Found::Absent);
    provider.stop(id, GRACE).await.unwrap();
    provider.destroy(id).await.unwrap();
    assert!(matches!(
        provider.start(&environment).await,
        Err(ProviderError::NoEnvironment)
    ));
    assert!(matches!(
        provider.logs(id, LogOptions::default()).await.map(drop),
        Err(ProviderError::NoEnvironment)
    ));
    assert!(provider.list().await.unwrap().is_empty());
    assert!(subject.leftovers(id).is_empty());
}

pub async fn what_was_made_twice_is_there_once_and_answers(subject: &Subject) {
    let provider = &subject.provider;
    let environment = subject.environment();
    let id = &environment.id;
    let first = subject.create(&environment).await;
    assert_eq!(provider.inspect(id).await.unwrap(), Found::Stopped);
    assert_eq!(subject.create(&environment).await, first);
    for _ in 0..2 {
        provider.start(&environment).await.unwrap();
        assert_eq!(provider.inspect(id).await.unwrap(), Found::Running);
    }
    subject.answers(&first).await;
    // Made again while it runs, it is left alone.
    let boot = subject.says(&first, "cat /proc/1/stat /proc/$PPID/stat");
    assert_eq!(subject.create(&environment).await, first);
    provider.start(&environment).await.unwrap();
    assert_eq!(
        start_times(&subject.says(&first, "cat /proc/1/stat /proc/$PPID/stat")),
        start_times(&boot)
    );
    assert_eq!(provider.list().await.unwrap(), std::slice::from_ref(id));
}

/// Start times (proc(5), field 22) in lines of /proc/PID/stat: of PID 1 and of the agent.
fn start_times(stats: &str) -> Vec<String> {
    let field = |line: &str| {
        let after = line.rsplit_once(") ").unwrap().1;
        after.split(' ').nth(19).unwrap().to_owned()
    };
    stats.lines().map(field).collect()
}

/// What tells an agent apart from all others: which boot of a kernel it is of, and when it started.
fn agent_of(subject: &Subject, placement: &Placement) -> (String, Vec<String>) {
    let boot = subject.says(placement, "cat /proc/sys/kernel/random/boot_id");
    let stat = subject.says(placement, "cat /proc/$PPID/stat");
    (boot, start_times(&stat))
}

pub async fn what_was_stopped_starts_again_with_its_disk(subject: &Subject) {
    let provider = &subject.provider;
    let environment = subject.environment();
    let id = &environment.id;
    let placement = subject.up(&environment).await;
    subject.says(&placement, "echo kept >file");
    let began = Instant::now();
    provider.stop(id, Duration::from_secs(120)).await.unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(110),
        "it ends when asked"
    );
    assert_eq!(provider.inspect(id).await.unwrap(), Found::Stopped);
    provider.stop(id, GRACE).await.unwrap();
    let exit = timeout(PATIENCE, provider.exited(id))
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(exit.status, None | Some(0)), "{exit:?}");
    let again = subject.up(&environment).await;
    assert_eq!(again, placement);
    assert_eq!(subject.says(&again, "cat file"), "kept");
}

pub async fn another_generation_replaces_the_environment_and_keeps_the_disk(subject: &Subject) {
    let mut environment = subject.environment();
    let placement = subject.up(&environment).await;
    subject.says(&placement, "echo kept >file");
    let before = agent_of(subject, &placement);
    sleep(Duration::from_millis(20)).await; // start times count hundredths of a second
    environment.generation = 2;
    let placement = subject.up(&environment).await;
    assert_ne!(agent_of(subject, &placement), before);
    assert_eq!(subject.says(&placement, "cat file"), "kept");
    let found = subject.provider.list().await.unwrap();
    assert_eq!(found, std::slice::from_ref(&environment.id));
}

pub async fn destroyed_while_running_leaves_nothing(subject: &Subject) {
    let provider = &subject.provider;
    let environment = subject.environment();
    let other = subject.environment();
    subject.up(&environment).await;
    let bystander = subject.up(&other).await;
    provider.destroy(&environment.id).await.unwrap();
    assert_eq!(subject.leftovers(&environment.id), Vec::<String>::new());
    assert_eq!(
        provider.inspect(&environment.id).await.unwrap(),
        Found::Absent
    );
    provider.destroy(&environment.id).await.unwrap();
    assert_eq!(
        provider.list().await.unwrap(),
        std::slice::from_ref(&other.id)
    );
    assert_eq!(subject.says(&bystander, "echo unharmed"), "unharmed");
}

pub async fn what_is_made_hard_to_remove_is_removed(subject: &Subject) {
    let provider = &subject.provider;
    let environment = subject.environment();
    let placement = subject.up(&environment).await;
    // A module cache of Go is read-only to its owner.
    subject.says(
        &placement,
        "mkdir -p cache/deep && touch cache/deep/file && chmod 500 cache/deep && chmod 0 cache",
    );
    // An environment writes beside its agent's socket as whoever it is inside.
    let beside = placement.listen.parent().unwrap().display();
    subject.says(
        &placement,
        &format!(
            "mkdir -p {beside}/own/deep && chmod 700 {beside}/own && touch {beside}/own/deep/file"
        ),
    );
    provider.destroy(&environment.id).await.unwrap();
    assert_eq!(subject.leftovers(&environment.id), Vec::<String>::new());
}

pub async fn the_environments_of_another_gateway_are_not_ours(subject: &Subject) {
    let environment = subject.environment();
    let placement = subject.up(&environment).await;
    let stranger = &subject.stranger;
    assert!(stranger.list().await.unwrap().is_empty());
    assert_eq!(
        subject.provider.list().await.unwrap(),
        std::slice::from_ref(&environment.id)
    );
    assert_eq!(subject.says(&placement, "echo unharmed"), "unharmed");
}

pub async fn what_ends_by_itself_is_reported(subject: &Subject) {
    let provider = &subject.provider;
    let environment = subject.environment();
    let id = &environment.id;
    subject.up(&environment).await;
    let mut changes = provider.changes().await.unwrap();
    let exited = provider.exited(id);
    let (exit, ()) = tokio::join!(timeout(PATIENCE, exited), async {
        sleep(Duration::from_millis(200)).await;
        subject.murder(&environment);
    });
    let exit = exit.unwrap().unwrap();
    assert!(matches!(exit.status, None | Some(137)), "{exit:?}");
    let reported = timeout(PATIENCE, changes.next()).await.unwrap();
    assert_eq!(&reported.unwrap().unwrap(), id);
    assert_eq!(provider.inspect(id).await.unwrap(), Found::Stopped);
    // What a murdered agent left behind stands in nobody's way.
    subject.up(&environment).await;
}

pub async fn a_start_or_stop_by_anybody_is_reported(subject: &Subject) {
    let provider = &subject.provider;
    let environment = subject.environment();
    subject.create(&environment).await;
    let mut changes = provider.changes().await.unwrap();
    // A poller must have seen it stopped to see it started; what it told then is of before.
    while let Ok(Some(_)) = timeout(Duration::from_millis(2500), changes.next()).await {}
    provider.start(&environment).await.unwrap();
    let reported = timeout(PATIENCE, changes.next()).await.unwrap();
    assert_eq!(reported.unwrap().unwrap(), environment.id);
    provider.stop(&environment.id, GRACE).await.unwrap();
    let reported = timeout(PATIENCE, changes.next()).await.unwrap();
    assert_eq!(reported.unwrap().unwrap(), environment.id);
}

pub async fn sessions_have_the_environment_and_directory_of_the_config(subject: &Subject) {
    let environment = subject.environment();
    let placement = subject.up(&environment).await;
    assert_eq!(subject.says(&placement, "echo $GREETING"), "hello world");
    let workdir = placement.workdir.display().to_string();
    assert_eq!(subject.says(&placement, "pwd"), workdir);
    subject.says(&placement, "touch writable");
}

pub async fn its_log_is_read_whole_by_its_last_lines_and_as_it_grows(subject: &Subject) {
    let provider = &subject.provider;
    let environment = subject.environment();
    let id = &environment.id;
    for _ in 0..2 {
        provider.stop(id, GRACE).await.unwrap();
        subject.up(&environment).await;
    }
    let read = |tail| async move {
        let options = LogOptions {
            follow: false,
            tail,
        };
        let log = provider.logs(id, options).await.unwrap();
        let bytes = log.try_collect::<Vec<_>>().await.unwrap().concat();
        String::from_utf8(bytes).unwrap()
    };
    let whole = read(None).await;
    assert!(whole.lines().count() > 1, "{whole}");
    let last = read(Some(1)).await;
    assert_eq!(last.lines().count(), 1, "{last}");
    let options = LogOptions {
        follow: true,
        tail: None,
    };
    let followed = provider.logs(id, options).await.unwrap();
    let (followed, ()) = tokio::join!(timeout(PATIENCE, followed.try_collect::<Vec<_>>()), async {
        sleep(Duration::from_millis(200)).await;
        provider.stop(id, GRACE).await.unwrap();
    });
    let followed = followed
        .expect("it ends with the environment")
        .unwrap()
        .concat();
    let followed = String::from_utf8(followed).unwrap();
    let whole = read(None).await;
    assert_eq!(followed, whole);
}

pub async fn calls_at_once_make_one_environment(subject: &Subject) {
    let provider = &subject.provider;
    let environment = subject.environment();
    let id = &environment.id;
    let (one, two) = tokio::join!(subject.create(&environment), subject.create(&environment));
    assert_eq!(one, two);
    let starts = tokio::join!(provider.start(&environment), provider.start(&environment));
    starts.0.unwrap();
    starts.1.unwrap();
    subject.answers(&one).await;
    let stops = tokio::join!(provider.stop(id, GRACE), provider.stop(id, GRACE));
    stops.0.unwrap();
    stops.1.unwrap();
    assert_eq!(provider.inspect(id).await.unwrap(), Found::Stopped);
    let ends = tokio::join!(provider.destroy(id), provider.destroy(id));
    ends.0.unwrap();
    ends.1.unwrap();
    assert_eq!(subject.leftovers(id), Vec::<String>::new());
}

pub async fn work_cut_off_anywhere_is_done_again(subject: &Subject) {
    let provider = &subject.provider;
    let mut random = Seeded::new(7);
    for _ in 0..subject.rounds() {
        let mut environment = subject.environment();
        let id = environment.id.clone();
        subject.node.make_dir(&environment.run_dir).await.unwrap();
        for generation in [1, 2] {
            environment.generation = generation;
            let context = subject.context();
            let cut = |most: u64, random: &mut Seeded| Duration::from_millis(random.below(most));
            let _ = timeout(
                cut(200, &mut random),
                provider.create(&environment, &context),
            )
            .await;
            subject.create(&environment).await;
            let _ = timeout(cut(400, &mut random), provider.start(&environment)).await;
            let placement = subject.up(&environment).await;
            assert_eq!(subject.says(&placement, "echo whole"), "whole");
            if random.below(2) == 0 {
                let _ = timeout(cut(300, &mut random), provider.stop(&id, GRACE)).await;
                provider.stop(&id, GRACE).await.unwrap();
                assert_eq!(provider.inspect(&id).await.unwrap(), Found::Stopped);
            }
        }
        let _ = timeout(
            Duration::from_millis(random.below(300)),
            provider.destroy(&id),
        )
        .await;
        provider.destroy(&id).await.unwrap();
        assert_eq!(subject.leftovers(&id), Vec::<String>::new());
    }
    assert!(provider.list().await.unwrap().is_empty());
}

pub async fn an_agent_survives_the_provider_that_started_it(subject: &Subject) {
    let environment = subject.environment();
    let placement = subject.up(&environment).await;
    let heir = subject.heir();
    assert_eq!(heir.inspect(&environment.id).await.unwrap(), Found::Running);
    heir.start(&environment).await.unwrap();
    assert_eq!(subject.says(&placement, "echo same"), "same");
    heir.destroy(&environment.id).await.unwrap();
    assert_eq!(subject.leftovers(&environment.id), Vec::<String>::new());
}
