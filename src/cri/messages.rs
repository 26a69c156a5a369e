//! What is looked at of CRI's messages. All else in them is passed on unseen.

use std::fmt;

use prost::Message;

/// Which image.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct ImageSpec {
    /// A reference or, once it was pulled, an ID.
    #[prost(string, tag = "1")]
    pub image: String,
}

/// Who to be at the registry.
#[derive(Clone, PartialEq, Eq, Message)]
#[prost(skip_debug)]
pub(super) struct AuthConfig {
    #[prost(string, tag = "1")]
    pub username: String,
    #[prost(string, tag = "2")]
    pub password: String,
    /// Base64 of `USER:PASSWORD`.
    #[prost(string, tag = "3")]
    pub auth: String,
    /// The only host that these are for; empty: the registry.
    #[prost(string, tag = "4")]
    pub server_address: String,
    /// An OAuth2 refresh token.
    #[prost(string, tag = "5")]
    pub identity_token: String,
}

impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(auth)")
    }
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct PullImageRequest {
    #[prost(message, optional, tag = "1")]
    pub image: Option<ImageSpec>,
    #[prost(message, optional, tag = "2")]
    pub auth: Option<AuthConfig>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct PullImageResponse {
    /// The image's ID.
    #[prost(string, tag = "1")]
    pub image_ref: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct RemoveImageRequest {
    #[prost(message, optional, tag = "1")]
    pub image: Option<ImageSpec>,
}
