//! The service that containerd asks: its socket, and what runs behind it.

use std::fmt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, bail};
use futures_util::{FutureExt, stream};
use listenfd::ListenFd;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::Server;

use super::protocol::RegistryAccess;
use super::snapshots::{ImageLayers, WithoutIndex};
use super::{Node, server};
use crate::config;
use crate::cri::{ImageService, Remembered};
use crate::kubernetes;
use crate::observe::scrape::{self, ScrapeAddress, WritePage};
use crate::snapshot::service::SnapshotsService;
use crate::snapshot::{Options, Snapshotter};

/// Where the service listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// A unix socket.
    Path(PathBuf),
    /// The socket that systemd hands over; the default path when there is none (as SOCI's snapshotter does).
    Inherited,
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "fd://" {
            return Ok(Self::Inherited);
        }
        let path = text.strip_prefix("unix://").unwrap_or(text);
        match Path::new(path) {
            path if path.is_absolute() => Ok(Self::Path(path.to_owned())),
            _ => Err(format!("{text:?} is no absolute path, unix://PATH or fd://")),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Inherited => f.write_str("fd://"),
        }
    }
}

/// How the service is to run.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Where it listens.
    pub address: Address,
    /// How it behaves.
    pub settings: config::Snapshotter,
    /// Where credentials come from, besides docker's configuration.
    pub credentials: config::Credentials,
    /// How registries are talked to.
    pub access: RegistryAccess,
}

/// A socket that is bound, so that clients wait instead of failing, and not answered yet.
pub struct Listening {
    listener: UnixListener,
    /// To be removed at the end.
    path: Option<PathBuf>,
}

/// Binds the socket.
///
/// # Errors
/// When it cannot be bound, or systemd handed over something else.
pub fn listen(address: &Address) -> anyhow::Result<Listening> {
    let path = match address {
        Address::Path(path) => path.clone(),
        Address::Inherited => {
            let mut inherited = ListenFd::from_env();
            if inherited.len() > 1 {
                bail!("{} sockets were handed over; the service takes one", inherited.len());
            }
            let taken = inherited.take_unix_listener(0).context("what was handed over is no unix stream socket")?;
            if let Some(listener) = taken {
                listener.set_nonblocking(true)?;
                return Ok(Listening { listener: UnixListener::from_std(listener)?, path: None });
            }
            PathBuf::from(config::Snapshotter::default().address)
        }
    };
    if std::os::unix::net::UnixStream::connect(&path).is_ok() {
        bail!("somebody already answers on {}; is another `sociblk serve` running?", path.display());
    }
    if let Some(dir) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(dir)
            .with_context(|| format!("{}: cannot be made", dir.display()))?;
    }
    Ok(Listening { listener: server::bind(&path)?, path: Some(path) })
}

impl Listening {
    /// Sets up what credentials come from, first what is most particular, and CRI's image service, if it is wanted.
    fn keychains(&self, node: &Arc<Node>, settings: &config::Credentials) -> anyhow::Result<Option<ImageService>> {
        let mut image_service = None;
        if settings.cri {
            let socket = settings.image_service();
            let own = self.listener.local_addr()?;
            if own.as_pathname().is_some_and(|own| own == socket) {
                bail!("credentials.cri_image_service is the address of this service itself; it must be containerd's");
            }
            let remembered = Remembered::default();
            node.clients.keychains.add(Arc::new(remembered.clone()));
            image_service = Some(ImageService::new(socket, remembered)?);
            tracing::info!(passed_on_to = %socket.display(), "CRI's image service is served, too");
        }
        if settings.kubernetes {
            let secrets = kubernetes::Secrets::default();
            node.clients.keychains.add(Arc::new(secrets.clone()));
            match kubernetes::Source::find(&settings.kubeconfig) {
                Ok(source) => drop(tokio::spawn(kubernetes::watch(source, secrets, kubernetes::Pauses::default()))),
                // Not worth to be without containers.
                Err(error) => tracing::warn!(%error, "no secrets of Kubernetes are used"),
            }
        }
        Ok(image_service)
    }

    /// Answers containerd until `stopped` turns true.
    ///
    /// # Errors
    /// When the snapshots' database or directories cannot be used.
    pub async fn serve(
        self,
        node: &Arc<Node>,
        options: &ServeOptions,
        mut stopped: watch::Receiver<bool>,
    ) -> anyhow::Result<JoinHandle<()>> {
        let settings = &options.settings;
        let image_service = self.keychains(node, &options.credentials)?;
        let without_index = match settings.without_index {
            config::WithoutIndex::Defer => WithoutIndex::Defer,
            config::WithoutIndex::Stream => WithoutIndex::Stream,
        };
        let layers = ImageLayers::new(Arc::clone(node), without_index, options.access.clone(), settings.background)
            .with_containerd(&settings.containerd_address);
        let options = Options { min_layer_bytes: settings.min_layer_size.0 };
        let snapshotter = Snapshotter::open(node.paths.root(), Arc::new(layers), options)?;
        snapshotter.reconcile().await?;
        let restoring = snapshotter.clone();
        tokio::spawn(async move {
            if let Err(error) = restoring.restore().await {
                tracing::warn!(%error, "layers of the last run are shown again when they are needed");
            }
        });
        let scraped = match settings.metrics_address.as_str() {
            "" => None,
            address => {
                let address: ScrapeAddress = address.parse().map_err(anyhow::Error::msg)?;
                let (node, snapshotter) = (Arc::clone(node), snapshotter.clone());
                let page: WritePage = Arc::new(move || {
                    let (node, snapshotter) = (Arc::clone(&node), snapshotter.clone());
                    async move { node.metrics(Some(snapshotter.counters())).await }.boxed()
                });
                let served = scrape::serve(&address, page).await;
                Some(served.with_context(|| format!("metrics at {}", settings.metrics_address))?)
            }
        };
        let service = SnapshotsService::new(snapshotter);
        let connections = stream::unfold(self.listener, |listener| async move {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        let path = self.path;
        Ok(tokio::spawn(async move {
            let stop = async move {
                let _ = stopped.wait_for(|stopped| *stopped).await;
            };
            let services = Server::builder().add_service(service).add_optional_service(image_service);
            let served = services.serve_with_incoming_shutdown(connections, stop).await;
            if let Err(error) = served {
                tracing::error!(%error, "the snapshots service ended");
            }
            if let Some(scraped) = scraped {
                scraped.abort();
            }
            if let Some(path) = path {
                let _ = std::fs::remove_file(path);
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_paths_or_inherited() {
        assert_eq!("fd://".parse(), Ok(Address::Inherited));
        for text in ["/run/x.sock", "unix:///run/x.sock"] {
            assert_eq!(text.parse(), Ok(Address::Path(PathBuf::from("/run/x.sock"))));
        }
        for text in ["", "x.sock", "unix://x", "tcp://1.2.3.4:5", "fd://3"] {
            assert!(text.parse::<Address>().is_err(), "{text:?}");
        }
    }
}
