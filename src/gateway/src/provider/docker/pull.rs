//! Images: one that the engine has is used as it is, without asking a
//! registry; another one is pulled.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bollard::errors::Error;
use bollard::models::CreateImageInfo;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures::StreamExt;

use super::super::{Context, ImageReference, ProviderError};
use super::engine::{Engine, is_absent};

/// What the engine sets for an image that says nothing of it (moby, oci/defaults).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Longest silence of a pull.
const PULL_LIMIT: Duration = Duration::from_secs(300);

/// An image that the engine has.
#[derive(Debug, Clone)]
pub(super) struct Image {
    pub reference: ImageReference,
    /// Its own user, empty for none.
    pub user: String,
    /// Its environment variables.
    pub env: BTreeMap<String, String>,
}

/// Sees that the engine has the image.
pub(super) async fn ensure_image(
    engine: &Engine,
    image: &ImageReference,
    context: &Context,
) -> Result<Image, ProviderError> {
    if let Some(image) = inspect(engine, image).await? {
        return Ok(image);
    }
    let step = context.progress.step(format!("pull image {image}"));
    let pulled = tokio::select! {
        pulled = pull(engine, image, &step) => pulled,
        () = context.cancel.cancelled() => Err(ProviderError::Cancelled),
    };
    step.end(pulled)?;
    inspect(engine, image)
        .await?
        .ok_or_else(|| absent(image, "the engine does not have it after pulling it"))
}

/// What the image is; none when the engine does not have it.
pub(super) async fn inspect(
    engine: &Engine,
    image: &ImageReference,
) -> Result<Option<Image>, ProviderError> {
    let client = engine.client().await?;
    match client.inspect_image(&image.to_string()).await {
        Ok(inspected) => {
            let config = inspected.config.unwrap_or_default();
            let mut env = variables(config.env.unwrap_or_default());
            env.entry("PATH".to_owned())
                .or_insert_with(|| DEFAULT_PATH.to_owned());
            Ok(Some(Image {
                reference: image.clone(),
                user: config.user.unwrap_or_default(),
                env,
            }))
        }
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(engine.failed("inspect image", error)),
    }
}

/// Variables as the engine writes them, "NAME=VALUE".
pub(super) fn variables(lines: Vec<String>) -> BTreeMap<String, String> {
    let pair = |line: &String| {
        let (name, value) = line.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    };
    lines.iter().filter_map(pair).collect()
}

async fn pull(
    engine: &Engine,
    image: &ImageReference,
    step: &crate::workspace::Step,
) -> Result<(), ProviderError> {
    let client = engine.patient(PULL_LIMIT).await?;
    let options = CreateImageOptionsBuilder::default()
        .from_image(&image.to_string())
        .build();
    let mut reports = std::pin::pin!(client.create_image(Some(options), None, None));
    let mut layers = Layers::default();
    loop {
        let Ok(report) = tokio::time::timeout(PULL_LIMIT, reports.next()).await else {
            return Err(absent(image, "the registry sends nothing any more"));
        };
        match report {
            None => return Ok(()),
            Some(Ok(report)) => {
                if let Some((done, total)) = layers.take(report) {
                    step.transfer(done, total);
                }
            }
            Some(Err(error)) => return Err(pull_failed(engine, image, error)),
        }
    }
}

/// What the engine says when the registry answers that it has no such image.
const ABSENT: [&str; 4] = ["not found", "manifest unknown", "denied", "does not exist"];

/// A registry that has no such image is one thing; one that the engine cannot
/// ask, or an engine that cannot be asked itself, is another.
fn pull_failed(engine: &Engine, image: &ImageReference, error: Error) -> ProviderError {
    let said = match &error {
        Error::DockerResponseServerError { message, .. } => message,
        Error::DockerStreamError { error } => error,
        _ => "",
    };
    if ABSENT.iter().any(|words| said.contains(words)) {
        return absent(image, said);
    }
    match engine.failed("pull image", error) {
        ProviderError::Engine {
            provider,
            node,
            operation,
            problem,
            remedy: None,
        } => {
            let remedy = Some(format!(
                "bring the image to the node: docker pull {image}, or docker load"
            ));
            ProviderError::Engine {
                provider,
                node,
                operation,
                problem,
                remedy,
            }
        }
        other => other,
    }
}

fn absent(image: &ImageReference, problem: &str) -> ProviderError {
    ProviderError::NoImage {
        image: image.to_string(),
        problem: format!("not on the node, and not to be had: {}", problem.trim()),
        remedy: format!("check the name, or bring the image to the node: docker pull {image}"),
    }
}

/// Bytes of each layer of an image on its way.
#[derive(Debug, Default)]
struct Layers(HashMap<String, (u64, Option<u64>)>);

impl Layers {
    /// Counts a report in; returns the bytes of all layers, and of how many when known.
    fn take(&mut self, report: CreateImageInfo) -> Option<(u64, Option<u64>)> {
        let (layer, status) = (report.id?, report.status?);
        let detail = report.progress_detail.unwrap_or_default();
        let count = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok());
        let entry = self.0.entry(layer).or_default();
        match status.as_str() {
            "Downloading" => *entry = (count(detail.current)?, count(detail.total)),
            "Download complete" | "Pull complete" => entry.0 = entry.1.unwrap_or(entry.0),
            _ => return None,
        }
        let done = self.0.values().map(|(done, _)| done).sum();
        let total = self
            .0
            .values()
            .filter(|(done, total)| *done > 0 || total.is_some())
            .map(|(_, total)| *total)
            .sum();
        Some((done, total))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard::models::ProgressDetail;

    fn report(layer: &str, status: &str, current: i64, total: i64) -> CreateImageInfo {
        CreateImageInfo {
            id: Some(layer.to_owned()),
            status: Some(status.to_owned()),
            progress_detail: Some(ProgressDetail {
                current: Some(current),
                total: Some(total),
            }),
            ..CreateImageInfo::default()
        }
    }

    #[test]
    fn bytes_of_all_layers_are_added_up() {
        let mut layers = Layers::default();
        assert_eq!(
            layers.take(report("22.04", "Pulling from library/ubuntu", 0, 0)),
            None
        );
        assert_eq!(
            layers.take(report("a", "Downloading", 10, 100)),
            Some((10, Some(100)))
        );
        assert_eq!(
            layers.take(report("b", "Downloading", 5, 50)),
            Some((15, Some(150)))
        );
        assert_eq!(
            layers.take(report("a", "Download complete", 0, 0)),
            Some((105, Some(150)))
        );
        assert_eq!(layers.take(report("a", "Extracting", 1, 100)), None);
        assert_eq!(layers.take(report("b", "Downloading", -5, 50)), None);
    }
}
