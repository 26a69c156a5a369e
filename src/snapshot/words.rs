//! Why a layer is not shown lazily, as log lines and metrics have it: the reasons that lie on this side of [`super::Layers`].

/// It is smaller than the settings want lazy layers to be.
pub const BELOW_MINIMUM: &str = "below-minimum";
/// containerd did not say which layer it is.
pub const NO_LABELS: &str = "no-labels";
/// Showing it failed.
pub const FAILED: &str = "failed";
