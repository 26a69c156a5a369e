//! Settings of where credentials come from, besides docker's configuration.

use serde::{Deserialize, Serialize};

use super::docs::documented;

documented! {
    /// Settings of `[credentials]`.
    #[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    pub struct Credentials {
        /// `sociblk serve` is CRI's image service, too, at the same address: it passes every call on, and keeps the
        /// credentials of pulls in memory. The kubelet is told so by `imageServiceEndpoint`.
        pub cri: bool,
        /// Socket of the image service that calls are passed on to, with `cri`: containerd's.
        pub cri_image_service: String,
        /// `sociblk serve` uses secrets of the type kubernetes.io/dockerconfigjson of all namespaces, and watches them.
        pub kubernetes: bool,
        /// The kubeconfig file for that. Empty: `$KUBECONFIG`, else the service account of the pod.
        pub kubeconfig: String,
    }
}

impl Default for Credentials {
    fn default() -> Self {
        Self {
            cri: false,
            cri_image_service: "/run/containerd/containerd.sock".to_owned(),
            kubernetes: false,
            kubeconfig: String::new(),
        }
    }
}

impl Credentials {
    /// The setting that is wrong, and what it must be.
    pub(super) fn wrong(&self) -> Option<(&'static str, &'static str)> {
        let socket = &self.cri_image_service;
        let path = socket.strip_prefix("unix://").unwrap_or(socket);
        Some(match self {
            _ if !path.starts_with('/') || path.contains(':') => {
                ("credentials.cri_image_service", "must be an absolute path without a colon, or unix://PATH")
            }
            _ if !self.kubeconfig.is_empty() && !self.kubeconfig.starts_with('/') => {
                ("credentials.kubeconfig", "must be an absolute path")
            }
            _ => return None,
        })
    }

    /// Path of the socket of the image service.
    #[must_use]
    pub fn image_service(&self) -> &std::path::Path {
        self.cri_image_service.strip_prefix("unix://").unwrap_or(&self.cri_image_service).as_ref()
    }
}
