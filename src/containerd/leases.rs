//! The leases service: what belongs to a lease is not collected.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::{AddResourceRequest, CreateRequest, DeleteRequest, Resource};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tonic::transport::Channel;

use super::client::SILENCE_LIMIT;
use super::{Address, Client, ContainerdError, labels};
use crate::units::Digest;

/// How long a lease lives that nobody deletes: as those of containerd's own clients.
pub const LEASE_LIFE: Duration = Duration::from_secs(24 * 3600);
/// How long a command that ends waits for its lease to go: longer than containerd takes, shorter than patience.
const FAREWELL_LIMIT: Duration = Duration::from_secs(5);

/// A lease. Dropped, it is deleted: what was written under it and is referred to by nothing else may then be collected. One
/// whose process is killed goes by itself when its life is over.
pub struct Lease {
    /// What is written through it belongs to the lease.
    client: Client,
    id: Option<String>,
}

impl Client {
    fn leases(&self) -> LeasesClient<Channel> {
        LeasesClient::new(self.channel())
    }

    /// Makes a lease that lives for `life` at most.
    ///
    /// # Errors
    /// [`ContainerdError`].
    pub async fn lease(&self, life: Duration) -> Result<Lease, ContainerdError> {
        let now = SystemTime::now();
        let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let id = format!("sociblk-{}-{}", std::process::id(), since_epoch.as_nanos());
        let what = format!("lease {id}");
        let end = OffsetDateTime::from(now + life).format(&Rfc3339);
        let end = end.map_err(|error| self.odd(&what, format!("the time of its end: {error}")))?;
        let header = id.parse().map_err(|_| self.odd(&what, "its name is no header"))?;
        let labels = [(labels::EXPIRE.to_owned(), end)].into();
        let request = CreateRequest { id: id.clone(), labels };
        match self.ask(&what, request, |request| async move { self.leases().create(request).await }).await {
            // The name is nobody else's: its answer was lost.
            Ok(_) | Err(ContainerdError::Exists { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(Lease { client: self.leased(header), id: Some(id) })
    }

    async fn delete_lease(&self, id: &str) -> Result<(), ContainerdError> {
        let request = DeleteRequest { id: id.to_owned(), sync: false };
        let call = |request| async move { self.leases().delete(request).await };
        match self.ask(&format!("lease {id}"), request, call).await {
            // Its life was over.
            Err(ContainerdError::NotFound { .. }) => Ok(()),
            deleted => deleted,
        }
    }
}

impl Lease {
    /// A connection whose writes belong to the lease.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Keeps content that is there, and all that it refers to.
    ///
    /// # Errors
    /// [`ContainerdError::NotFound`] when the content is gone; other [`ContainerdError`]s.
    pub async fn hold(&self, digest: Digest) -> Result<(), ContainerdError> {
        let Some(id) = &self.id else { return Ok(()) };
        let resource = Resource { id: digest.to_string(), r#type: "content".to_owned() };
        let request = AddResourceRequest { id: id.clone(), resource: Some(resource) };
        let call = |request| async move { self.client.leases().add_resource(request).await };
        self.client.ask(&format!("lease {id}"), request, call).await?;
        // A lease also takes what is not there.
        self.client.info(digest).await.map(drop)
    }

    /// Ends the lease.
    ///
    /// # Errors
    /// [`ContainerdError`]; the lease then goes when its life is over.
    pub async fn release(mut self) -> Result<(), ContainerdError> {
        match self.id.take() {
            Some(id) => self.client.delete_lease(&id).await,
            None => Ok(()),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        let address = self.client.address().clone();
        // The runtime may be on its way out: neither its threads nor its connections can be counted on.
        let farewell = std::thread::Builder::new().name("lease".to_owned()).spawn(move || farewell(&address, &id));
        if let Ok(thread) = farewell {
            // It does not panic, and has a time limit.
            let _ = thread.join();
        }
    }
}

/// Deletes a lease with a runtime and a connection of its own.
fn farewell(address: &Address, id: &str) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return tracing::warn!(lease = id, %error, "the lease stays until its time is over"),
    };
    let limit = FAREWELL_LIMIT.min(SILENCE_LIMIT);
    let deleted = runtime.block_on(async {
        tokio::time::timeout(limit, async { Client::connect(address).await?.delete_lease(id).await }).await
    });
    match deleted {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(lease = id, %error, "the lease stays until its time is over"),
        Err(_) => tracing::warn!(lease = id, "the lease stays until its time is over: containerd does not answer"),
    }
}
