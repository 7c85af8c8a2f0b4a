//! Images that are built from a project's files on the node's engine.
//!
//! The tag tells what an image was built from and for which generation of its
//! environment, so one that is there is not built again, and a rebuild builds.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bollard::errors::Error;
use bollard::query_parameters::{
    BuildImageOptionsBuilder, ListImagesOptionsBuilder, RemoveImageOptionsBuilder,
};
use futures::{StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};
use tokio_util::io::ReaderStream;
use vendetta_proto::spec::Build;

use super::super::{Context, Environment, ImageReference, ProviderError};
use super::Docker;
use super::container::{WORKSPACE, labels};
use super::engine::{is_absent, is_conflict};
use super::pull::{Image, inspect};
use crate::workspace::{Step, WorkspaceId};

/// Longest silence of a build: a command of a Dockerfile may take as long.
const BUILD_LIMIT: Duration = Duration::from_secs(3600);

/// How often is told how much of the context was sent.
const SENT: Duration = Duration::from_millis(500);

/// Lines of its output that tell how a build failed.
const LAST_LINES: usize = 20;

/// Longest command of a Dockerfile that is shown, in characters.
const MAX_SHOWN: usize = 60;

impl Docker {
    /// Sees that the engine has the image of an environment that is built.
    pub(super) async fn ensure_built(
        &self,
        environment: &Environment,
        build: &Build,
        context: &Context,
    ) -> Result<Image, ProviderError> {
        let Some(archive) = environment.build_context.clone() else {
            return Err(failed(
                "the project's files are not there to build it from",
                &[],
            ));
        };
        let digest = digest(archive.clone(), build.clone()).await?;
        let tag = format!(
            "vendetta/{}:{digest}-{}",
            environment.id, environment.generation
        );
        let reference = ImageReference::parse(&tag).map_err(|error| ProviderError::Refused {
            operation: "name the image",
            problem: error.to_string(),
        })?;
        if let Some(image) = inspect(&self.engine, &reference).await? {
            return Ok(image);
        }
        tokio::select! {
            built = self.build(environment, build, &reference, &archive, context) => built?,
            () = context.cancel.cancelled() => return Err(ProviderError::Cancelled),
        }
        inspect(&self.engine, &reference)
            .await?
            .ok_or_else(|| failed("the engine does not have it after building it", &[]))
    }

    async fn build(
        &self,
        environment: &Environment,
        build: &Build,
        reference: &ImageReference,
        archive: &Path,
        context: &Context,
    ) -> Result<(), ProviderError> {
        let arguments: HashMap<String, String> = build.args.clone().into_iter().collect();
        let mut options = BuildImageOptionsBuilder::default()
            .dockerfile(&build.dockerfile_in_context())
            .t(&reference.to_string())
            .buildargs(&arguments)
            .labels(&labels(&environment.id, &self.gateway_id))
            .rm(true)
            .forcerm(true);
        if let Some(target) = &build.target {
            options = options.target(target);
        }
        let mut output = Output::new(context);
        let (file, total) = open(archive).await?;
        let sent = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&sent);
        let body = ReaderStream::new(file).inspect_ok(move |bytes| {
            let count = u64::try_from(bytes.len()).unwrap_or(0);
            counter.fetch_add(count, Ordering::Relaxed);
        });
        let client = self.engine.patient(BUILD_LIMIT).await?;
        let body = bollard::body_try_stream(body);
        let mut reports = std::pin::pin!(client.build_image(options.build(), None, Some(body)));
        let mut tick = tokio::time::interval(SENT);
        loop {
            let silence = tokio::time::sleep(BUILD_LIMIT);
            let report = tokio::select! {
                report = reports.next() => report,
                _ = tick.tick(), if !output.began => {
                    output.sent(sent.load(Ordering::Relaxed), total);
                    continue;
                }
                () = silence => return output.fail("it says nothing any more"),
            };
            match report {
                None => return output.end(),
                Some(Ok(report)) => output.take(&report.stream.unwrap_or_default()),
                // What the project is to blame for; the rest is the engine's.
                Some(Err(Error::DockerStreamError { error })) => return output.fail(&error),
                Some(Err(Error::DockerResponseServerError {
                    status_code: 400..500,
                    message,
                })) => return output.fail(&message),
                Some(Err(error)) => {
                    let error = self.engine.failed("build image", error);
                    output.end_with(&error);
                    return Err(error);
                }
            }
        }
    }

    /// Images that were built for a workspace or a gateway.
    pub(super) async fn images(
        &self,
        label: &str,
        value: &str,
    ) -> Result<Vec<bollard::models::ImageSummary>, ProviderError> {
        let options = ListImagesOptionsBuilder::default()
            .filters(&self.ours(label, value))
            .build();
        let client = self.engine.client().await?;
        client
            .list_images(Some(options))
            .await
            .map_err(|error| self.engine.failed("list images", error))
    }

    /// Removes the images of a workspace but that of the name `keep`.
    pub(super) async fn remove_images(
        &self,
        id: &WorkspaceId,
        keep: Option<&str>,
    ) -> Result<(), ProviderError> {
        let client = self.engine.patient(Duration::from_secs(300)).await?;
        for image in self.images(WORKSPACE, id.as_str()).await? {
            // Two builds may come to one image, which then has the tags of both.
            let mut names = image.repo_tags;
            names.retain(|name| name != "<none>:<none>");
            if names.is_empty() {
                names.push(image.id);
            }
            for name in names.iter().filter(|name| keep != Some(name.as_str())) {
                let options = RemoveImageOptionsBuilder::default().force(true).build();
                match client.remove_image(name, Some(options), None).await {
                    Ok(_) => {}
                    // Another one is made of it, or it is being removed: the engine's to say when it goes.
                    Err(error) if is_absent(&error) || is_conflict(&error) => {
                        tracing::debug!(%id, %error, "removing an image");
                    }
                    Err(error) => return Err(self.engine.failed("remove image", error)),
                }
            }
        }
        Ok(())
    }
}

fn failed(problem: &str, log: &[String]) -> ProviderError {
    ProviderError::BuildFailed {
        problem: problem.trim().to_owned(),
        log: log.join("\n"),
    }
}

async fn open(archive: &Path) -> Result<(tokio::fs::File, u64), ProviderError> {
    let opened = async {
        let file = tokio::fs::File::open(archive).await?;
        let length = file.metadata().await?.len();
        Ok::<_, io::Error>((file, length))
    };
    opened.await.map_err(|error| unreadable(&error))
}

fn unreadable(error: &io::Error) -> ProviderError {
    failed(&format!("the project's files cannot be read: {error}"), &[])
}

/// What tells one build of a workspace from another.
async fn digest(archive: PathBuf, build: Build) -> Result<String, ProviderError> {
    let digest = tokio::task::spawn_blocking(move || {
        let mut hash = Sha256::new();
        let (mut file, mut buffer) = (File::open(archive)?, vec![0; 1 << 16]);
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            hash.update(buffer.get(..count).unwrap_or_default());
        }
        hash.update(format!("{build:?}"));
        Ok::<_, io::Error>(hex::encode(hash.finalize()))
    });
    let digest = digest
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)));
    let mut digest = digest.map_err(|error| unreadable(&error))?;
    digest.truncate(16);
    Ok(digest)
}

/// What a build says: a step for each command of the Dockerfile, and the last
/// lines for when it fails.
struct Output<'a> {
    context: &'a Context,
    step: Option<Step>,
    /// The engine has begun to answer.
    began: bool,
    unfinished: String,
    last: Vec<String>,
}

impl<'a> Output<'a> {
    fn new(context: &'a Context) -> Self {
        Self {
            context,
            step: Some(context.progress.step("send what the image is built from")),
            began: false,
            unfinished: String::new(),
            last: Vec::new(),
        }
    }

    fn sent(&self, done: u64, total: u64) {
        if let Some(step) = &self.step {
            step.transfer(done, Some(total));
        }
    }

    fn take(&mut self, text: &str) {
        self.began = true;
        self.unfinished.push_str(text);
        while let Some((line, rest)) = self.unfinished.split_once('\n') {
            let (line, rest) = (line.trim_end().to_owned(), rest.to_owned());
            self.unfinished = rest;
            self.line(line);
        }
    }

    fn line(&mut self, line: String) {
        if let Some(name) = step_name(&line) {
            if let Some(before) = self.step.take() {
                let _ = before.end(Ok::<_, ProviderError>(()));
            }
            self.step = Some(self.context.progress.step(name));
        }
        if !line.trim().is_empty() {
            self.last.push(line);
            if self.last.len() > LAST_LINES {
                self.last.remove(0);
            }
        }
    }

    fn end(mut self) -> Result<(), ProviderError> {
        match self.step.take() {
            Some(step) => step.end(Ok(())),
            None => Ok(()),
        }
    }

    fn end_with(&mut self, error: &ProviderError) {
        if let Some(step) = self.step.take() {
            let _ = step.end(Err::<(), _>(error));
        }
    }

    fn fail(mut self, problem: &str) -> Result<(), ProviderError> {
        let rest = std::mem::take(&mut self.unfinished);
        self.line(rest);
        let error = failed(problem, &self.last);
        self.end_with(&error);
        Err(error)
    }
}

/// "Step 2/5 : RUN make" as the name of a step; none for any other line.
fn step_name(line: &str) -> Option<String> {
    let (count, command) = line.strip_prefix("Step ")?.split_once(" : ")?;
    let shown: String = command.chars().take(MAX_SHOWN).collect();
    let more = if shown.len() < command.len() {
        "…"
    } else {
        ""
    };
    Some(format!("build {count} {shown}{more}"))
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::provider::Farewell;
    use crate::workspace::{Progress, ProgressSink};

    #[tokio::test]
    async fn a_command_of_the_dockerfile_is_a_step_and_the_last_lines_tell_of_a_failure() {
        let context = Context {
            progress: ProgressSink::new(),
            cancel: CancellationToken::new(),
            farewell: Farewell::default(),
        };
        let mut watch = context.progress.watch();
        let mut output = Output::new(&context);
        output.take("Step 1/2 : FROM x\n ---> 0123\nStep 2/2 : RUN fal");
        output.take(&format!("se\n ---> Running in 45\n{}", "line\n".repeat(50)));
        let error = output.fail("it returned a non-zero code: 1\n").unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("non-zero code: 1") && text.ends_with("line"),
            "{text}"
        );
        assert_eq!(text.matches("\nline").count(), LAST_LINES);
        context.progress.end(Ok(()));
        let mut steps = Vec::new();
        while let Some(progress) = watch.next().await {
            match progress {
                Progress::Finished { step, .. } => steps.push(step),
                Progress::Failed { step, .. } => steps.push(format!("failed {step}")),
                _ => {}
            }
        }
        assert_eq!(
            steps,
            [
                "send what the image is built from",
                "build 1/2 FROM x",
                "failed build 2/2 RUN false"
            ]
        );
    }

    #[test]
    fn a_long_command_is_shortened() {
        let name = step_name(&format!("Step 1/1 : RUN {}", "é".repeat(100))).unwrap();
        assert!(name.starts_with("build 1/1 RUN é") && name.ends_with('…'));
        assert_eq!(step_name("Stepping : stone"), None);
        assert_eq!(step_name(" ---> 0123"), None);
    }
}
