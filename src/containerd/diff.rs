//! The diff service: unpacking layers.

use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::diff_client::DiffClient;
use tonic::Status;

use super::images::{Target, descriptor};
use super::snapshots::Mounts;
use super::{Client, ContainerdError};
use crate::units::Digest;

/// How long unpacking one layer may take.
const APPLY_LIMIT: std::time::Duration = std::time::Duration::from_secs(3600);

impl Client {
    /// Unpacks a layer, whose blob is in the content store, into `mounts`, and says which diffID it had.
    ///
    /// # Errors
    /// [`ContainerdError`].
    pub async fn apply(&self, layer: &Target, mounts: Mounts) -> Result<Digest, ContainerdError> {
        let what = format!("layer {}", layer.digest);
        let request =
            self.request(ApplyRequest { diff: Some(descriptor(layer)), mounts: mounts.0, ..ApplyRequest::default() });
        let mut service = DiffClient::new(self.channel());
        let applied = tokio::time::timeout(APPLY_LIMIT, service.apply(request))
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("the layer was not unpacked within an hour")))
            .map_err(|status| ContainerdError::of(self.address(), &what, &status))?;
        let diff_id = applied.into_inner().applied.map(|applied| applied.digest).unwrap_or_default();
        diff_id.parse().map_err(|e: crate::units::DigestError| self.odd(&what, e.to_string()))
    }
}
