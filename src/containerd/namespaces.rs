//! The namespaces service.

use containerd_client::services::v1::ListNamespacesRequest;
use containerd_client::services::v1::namespaces_client::NamespacesClient;

use super::{Client, ContainerdError};

impl Client {
    /// The namespaces that containerd has, this connection's or not.
    ///
    /// # Errors
    /// [`ContainerdError`].
    pub async fn namespaces(&self) -> Result<Vec<String>, ContainerdError> {
        let call = |request| async move { NamespacesClient::new(self.channel()).list(request).await };
        let answer = self.ask("its namespaces", ListNamespacesRequest::default(), call).await?;
        let mut names: Vec<String> = answer.namespaces.into_iter().map(|namespace| namespace.name).collect();
        names.sort();
        Ok(names)
    }
}
