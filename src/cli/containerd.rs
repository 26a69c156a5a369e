//! Options of commands that take images from containerd's content store, and what they make of an image's name.

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;

use super::commands::absolute_image;
use crate::node::protocol::{CONTAINERD_SCHEME, DEFAULT_NAMESPACE, DEFAULT_SOCKET};

/// Options about containerd.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "containerd options")]
pub struct ContainerdArgs {
    /// Images are named as containerd at this socket has them, and come from and go to its content store.
    #[arg(long, env = "CONTAINERD_ADDRESS", value_name = "SOCKET")]
    pub containerd_address: Option<PathBuf>,
    /// containerd's namespace.
    #[arg(long, short = 'n', env = "CONTAINERD_NAMESPACE", default_value = DEFAULT_NAMESPACE, value_name = "NAME")]
    pub namespace: String,
}

impl ContainerdArgs {
    /// The image that a text names: with `--containerd-address` one of containerd's, unless it says otherwise. `containerd:IMAGE`
    /// always is.
    pub fn image(&self, text: &str) -> anyhow::Result<String> {
        let given = self.containerd_address.as_deref().filter(|socket| !socket.as_os_str().is_empty());
        let elsewhere = ["oci:", "oci-archive:", "layer:"].iter().any(|scheme| text.starts_with(scheme));
        let (name, socket) = match (text.strip_prefix(CONTAINERD_SCHEME), given) {
            // It says which containerd.
            (Some(rest), _) if rest.starts_with('/') => return Ok(text.to_owned()),
            (Some(name), given) => (name, given.unwrap_or(Path::new(DEFAULT_SOCKET))),
            (None, Some(socket)) if !elsewhere => (text, socket),
            (None, _) => return absolute_image(text),
        };
        let socket = socket.to_str().map(|socket| socket.strip_prefix("unix://").unwrap_or(socket));
        let Some(socket) = socket.filter(|socket| socket.starts_with('/') && !socket.contains(':')) else {
            bail!("--containerd-address must be an absolute path of valid UTF-8 without colons");
        };
        Ok(format!("{CONTAINERD_SCHEME}{socket}:{}:{name}", self.namespace))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_containerds_when_its_address_is_given() {
        let args = |socket: Option<&str>, namespace: &str| ContainerdArgs {
            containerd_address: socket.map(PathBuf::from),
            namespace: namespace.to_owned(),
        };
        let with = |socket| args(Some(socket), "k8s.io");
        for (args, text, want) in [
            (args(None, "default"), "app:1", "app:1"),
            (with(""), "app:1", "app:1"),
            (with("/run/c"), "app:1", "containerd:/run/c:k8s.io:app:1"),
            (with("unix:///run/c"), "h:5/app:1", "containerd:/run/c:k8s.io:h:5/app:1"),
            (with("/run/c"), "oci:/a:1", "oci:/a:1"),
            (with("/run/c"), "containerd:app:1", "containerd:/run/c:k8s.io:app:1"),
            (with("/run/c"), "containerd:/x:n:app:1", "containerd:/x:n:app:1"),
            (args(None, "default"), "containerd:app:1", "containerd:/run/containerd/containerd.sock:default:app:1"),
        ] {
            assert_eq!(args.image(text).expect(text), want);
        }
        for socket in ["c.sock", "/a:b", "unix://c"] {
            assert!(with(socket).image("app:1").is_err(), "{socket}");
        }
    }
}
