//! The containers service: which snapshot a container stands on.

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::{self as api, GetContainerRequest, ListContainersRequest};
use tonic::transport::Channel;

use super::client::MAX_MESSAGE_BYTES;
use super::{Client, ContainerdError};

/// A container, as far as its root file system goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Container {
    /// Its name.
    pub id: String,
    /// Name of its image; empty when it has none.
    pub image: String,
    /// The snapshotter that keeps its root file system; empty when none does.
    pub snapshotter: String,
    /// Key of its writable snapshot.
    pub snapshot_key: String,
}

impl Container {
    fn of(container: api::Container) -> Self {
        let api::Container { id, image, snapshotter, snapshot_key, .. } = container;
        Self { id, image, snapshotter, snapshot_key }
    }
}

impl Client {
    fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The container with exactly this name.
    ///
    /// # Errors
    /// [`ContainerdError::NotFound`], others.
    pub async fn container(&self, id: &str) -> Result<Container, ContainerdError> {
        let what = format!("container {id}");
        let request = GetContainerRequest { id: id.to_owned() };
        let answer = self.ask(&what, request, |request| async move { self.containers().get(request).await }).await?;
        answer.container.map(Container::of).ok_or_else(|| self.odd(&what, "the answer says nothing"))
    }

    /// All containers.
    ///
    /// # Errors
    /// [`ContainerdError`].
    pub async fn list_containers(&self) -> Result<Vec<Container>, ContainerdError> {
        let request = ListContainersRequest { filters: Vec::new() };
        let answer =
            self.ask("its containers", request, |request| async move { self.containers().list(request).await }).await?;
        Ok(answer.containers.into_iter().map(Container::of).collect())
    }
}
