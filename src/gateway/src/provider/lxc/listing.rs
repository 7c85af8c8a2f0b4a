//! What of this gateway there is in an engine, found by its labels.

use serde_json::Value;

use super::super::ProviderError;
use super::engine::Engine;
use super::instance::{self, Instance};
use crate::workspace::WorkspaceId;

/// A volume of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Volume {
    pub workspace: WorkspaceId,
    /// The storage pool that it is in.
    pub pool: String,
    name: String,
}

impl Volume {
    /// What the engine calls it.
    pub(super) fn path(&self) -> String {
        format!("{}/{}", volumes_of(&self.pool), self.name)
    }
}

/// Where the volumes of a pool are.
pub(super) fn volumes_of(pool: &str) -> String {
    format!("/1.0/storage-pools/{pool}/volumes/custom")
}

impl Engine {
    /// Instances of ours.
    pub(super) async fn instances(&self) -> Result<Vec<Instance>, ProviderError> {
        let all = self.get("/1.0/instances?recursion=1").await;
        let all = all.map_err(|trouble| self.failed("list instances", trouble))?;
        let all = all.as_array().into_iter().flatten();
        Ok(all
            .filter_map(|value| Instance::read(value, &self.gateway_id))
            .collect())
    }

    /// Names of all storage pools.
    pub(super) async fn pools(&self) -> Result<Vec<String>, ProviderError> {
        let all = self.get("/1.0/storage-pools").await;
        let all = all.map_err(|trouble| self.failed("list storage pools", trouble))?;
        let paths = all
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        Ok(paths
            .filter_map(|path| Some(path.rsplit('/').next()?.split('?').next()?.to_owned()))
            .collect())
    }

    /// Volumes of ours, whichever pool they are in.
    pub(super) async fn volumes(&self) -> Result<Vec<Volume>, ProviderError> {
        let mut found = Vec::new();
        for pool in self.pools().await? {
            let path = format!("{}?recursion=1", volumes_of(&pool));
            let all = match self.get(&path).await {
                Ok(all) => all,
                Err(trouble) if trouble.is_absent() => continue,
                Err(trouble) => return Err(self.failed("list volumes", trouble)),
            };
            for volume in all.as_array().into_iter().flatten() {
                let name = volume.get("name").and_then(Value::as_str);
                if let Some(workspace) = instance::workspace_of_volume(volume, &self.gateway_id)
                    && let Some(name) = name
                {
                    found.push(Volume {
                        workspace,
                        pool: pool.clone(),
                        name: name.to_owned(),
                    });
                }
            }
        }
        Ok(found)
    }
}
