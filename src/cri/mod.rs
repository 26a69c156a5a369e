//! CRI's image service, passed on to containerd, so that the credentials of its pull requests are known here, too.
//!
//! The kubelet gets the credentials of a pod's images from secrets and from credential providers, and gives them to the
//! image service with each pull; containerd keeps them to itself. So the kubelet talks to [`ImageService`], which hands
//! every call on as it came, and [`Remembered`] holds what it saw: in memory only, until the image is removed.
//!
//! Service and messages: <https://github.com/kubernetes/cri-api>, `pkg/apis/runtime/v1/api.proto`.

mod messages;
mod proxy;
mod remembered;
#[cfg(test)]
mod tests;

pub use proxy::{CriError, ImageService};
pub use remembered::Remembered;
