//! What an engine does in the background: followed to its end, and waited for when
//! somebody else began it.

use std::time::Duration;

use hyper::Method;
use serde_json::Value;
use tokio::time::Instant;

use super::engine::{Answered, Engine, Trouble};
use crate::workspace::Step;

/// How long one question for an operation's end may be open. Progress is told as often.
const TURN: Duration = Duration::from_secs(1);

/// How long an answer may take that is due.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A step of progress, in percent, that is worth telling.
const WORTH_TELLING: u64 = 10;

/// Has something done and waits for its end, for up to `limit`; `step` is told how it goes.
pub(super) async fn done(
    engine: &Engine,
    method: Method,
    path: &str,
    body: Option<&Value>,
    limit: Duration,
    step: Option<&Step>,
) -> Result<(), Trouble> {
    match engine.order(method, path, body).await? {
        Answered::Now(_) => Ok(()),
        Answered::Later(operation) => follow(engine, &operation, limit, step).await,
    }
}

/// Waits for the end of an operation.
async fn follow(
    engine: &Engine,
    operation: &str,
    limit: Duration,
    step: Option<&Step>,
) -> Result<(), Trouble> {
    let deadline = Instant::now() + limit;
    let mut told = Told::default();
    loop {
        let seconds = TURN.as_secs();
        let wait = format!("{operation}/wait?timeout={seconds}");
        let state = match engine.get_within(&wait, TURN + ANSWER_LIMIT).await {
            // LXD answers with the state when the time is up, Incus with an error.
            Err(trouble) if trouble.says(&["deadline exceeded"]) => engine.get(operation).await?,
            other => other?,
        };
        match end_of(&state) {
            Some(end) => return end,
            None if Instant::now() >= deadline => {
                let problem = format!("it is not done after {} s", limit.as_secs());
                return Err(Trouble::Said {
                    status: 500,
                    problem,
                });
            }
            None => {}
        }
        if let (Some(step), Some(text)) = (step, told.news(&state)) {
            step.message(text);
        }
    }
}

/// How an operation ended, when it has (LXD's api.StatusCode: 1xx it goes on, 200 it
/// succeeded, others it did not).
fn end_of(state: &Value) -> Option<Result<(), Trouble>> {
    let code = state.get("status_code").and_then(Value::as_u64)?;
    match code {
        100..=199 => None,
        200 => Some(Ok(())),
        _ => {
            let problem = state.get("err").and_then(Value::as_str).unwrap_or_default();
            Some(Err(Trouble::Said {
                status: 400,
                problem: problem.trim().to_owned(),
            }))
        }
    }
}

/// What was told of an operation's progress.
#[derive(Debug, Default)]
struct Told {
    stage: String,
    percent: u64,
}

impl Told {
    /// What is worth telling now. Engines say "rootfs: 45% (12.3MB/s)" under a key that
    /// ends in "_progress".
    fn news(&mut self, state: &Value) -> Option<String> {
        let metadata = state.get("metadata")?.as_object()?;
        let (_, text) = metadata
            .iter()
            .find(|(key, _)| key.ends_with("_progress"))?;
        let text = text.as_str()?;
        let (stage, rest) = text.split_once(": ")?;
        let percent = rest.split('%').next()?.trim().parse().ok()?;
        let worth = stage != self.stage || percent >= self.percent.saturating_add(WORTH_TELLING);
        worth.then(|| {
            stage.clone_into(&mut self.stage);
            self.percent = percent;
            text.to_owned()
        })
    }
}

/// What becomes of an operation that goes on though nobody waits for it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Other {
    /// It is waited for.
    Finish,
    /// It is to end early where it can, as the fetching of an image.
    Cancel,
}

/// Waits until no operation goes on on the instances whose names `whose` says yes to, for
/// up to `limit`: one that somebody gave up waiting for goes on all the same, and one that
/// fetches an image is on an instance that is not there yet.
pub(super) async fn settle(
    engine: &Engine,
    whose: &(dyn Fn(&str) -> bool + Sync),
    other: Other,
    limit: Duration,
) -> Result<(), Trouble> {
    let deadline = Instant::now() + limit;
    loop {
        let operations = engine.get("/1.0/operations?recursion=1").await?;
        let Some(running) = under_way(&operations, whose) else {
            return Ok(());
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Trouble::Said {
                status: 500,
                problem: "it is busy with the container".to_owned(),
            });
        }
        let path = format!("/1.0/operations/{running}");
        if other == Other::Cancel {
            // Most cannot be cancelled, and say so.
            let _ = engine.order(Method::DELETE, &path, None).await;
        }
        // How it ended is seen by what is there.
        let _ = follow(engine, &path, left, None).await;
    }
}

/// The id of an operation that goes on on an instance of such a name. Those with
/// websockets are somebody's sessions, which are none of our business.
fn under_way<'a>(operations: &'a Value, whose: &dyn Fn(&str) -> bool) -> Option<&'a str> {
    let is = |resource: &Value| {
        let path = resource.as_str().unwrap_or_default();
        let name = path.strip_prefix("/1.0/instances/");
        name.and_then(|name| name.split('?').next())
            .is_some_and(whose)
    };
    let lists = operations.as_object()?.values();
    let mut all = lists.flat_map(|list| list.as_array().into_iter().flatten());
    let found = all.find(|operation| {
        let field = |key: &str| operation.get(key);
        let code = field("status_code").and_then(Value::as_u64);
        let goes_on = matches!(code, Some(100..=199));
        let task = field("class").and_then(Value::as_str) == Some("task");
        let resources = field("resources").and_then(|all| all.get("instances"));
        let mut resources = resources.and_then(Value::as_array).into_iter().flatten();
        goes_on && task && resources.any(is)
    })?;
    found.get("id")?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_operation_ends_well_badly_or_not_yet() {
        assert!(end_of(&json!({"status_code": 103})).is_none());
        assert!(end_of(&json!({})).is_none());
        assert!(end_of(&json!({"status_code": 200})).unwrap().is_ok());
        let failed = end_of(&json!({"status_code": 400, "err": "no such thing not found"}));
        assert!(failed.unwrap().unwrap_err().is_absent());
    }

    #[test]
    fn progress_is_told_in_steps_and_from_the_start_of_each_stage() {
        let mut told = Told::default();
        let mut news = |text: &str| told.news(&json!({"metadata": {"download_progress": text}}));
        assert!(news("metadata: 100% (1GB/s)").is_some());
        assert!(news("rootfs: 1% (1MB/s)").is_some());
        assert!(news("rootfs: 10% (1MB/s)").is_none());
        assert!(news("rootfs: 11% (1MB/s)").is_some());
        for noise in ["", "rootfs", "rootfs: x%", "rootfs: "] {
            assert!(news(noise).is_none(), "{noise:?}");
        }
        assert!(told.news(&Value::Null).is_none());
    }

    #[test]
    fn sessions_and_what_is_done_to_others_is_not_waited_for() {
        let operation = |id: &str, class: &str, code: u64, name: &str| {
            let resources = json!({"instances": [format!("/1.0/instances/{name}")]});
            json!({"id": id, "class": class, "status_code": code, "resources": resources})
        };
        let all = json!({
            "running": [
                operation("a", "websocket", 103, "x"),
                operation("b", "task", 103, "y"),
                operation("c", "task", 103, "x"),
            ],
            "success": [operation("d", "task", 200, "x")],
            "odd": null,
        });
        assert_eq!(under_way(&all, &|name| name == "x"), Some("c"));
        assert_eq!(under_way(&all, &|name| name == "z"), None);
        assert_eq!(under_way(&Value::Null, &|_| true), None);
    }
}
