//! Keeps what is known of a cluster's secrets up to date, for ever.

use std::time::Duration;

use super::api::{Api, Event};
use super::{KubernetesError, Secrets, Source};

/// How long to wait before the cluster is asked again.
#[derive(Clone, Copy, Debug)]
pub struct Pauses {
    /// After a watch that ended as it should, and after the first failure; it doubles with each further one.
    pub first: Duration,
    /// The longest.
    pub longest: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Self { first: Duration::from_secs(1), longest: Duration::from_secs(60) }
    }
}

/// Lists and watches the secrets of the cluster that `source` names, and never ends. Whatever goes wrong is logged and
/// tried again: a kubeconfig file may come later than the daemon, and a cluster go and come back.
pub async fn watch(source: Source, secrets: Secrets, pauses: Pauses) {
    let mut state = Watch { source, secrets, version: None, progress: false };
    let mut pause = pauses.first;
    loop {
        state.progress = false;
        let done = state.once().await;
        if state.progress {
            pause = pauses.first;
        }
        match done {
            Ok(()) => pause = pauses.first,
            Err(error) if error.is_gone() => {
                tracing::debug!(%error, "the secrets of Kubernetes are listed again");
                state.version = None;
            }
            Err(error) => {
                let (known, again_in_s) = (state.secrets.len(), pause.as_secs());
                tracing::warn!(%error, known, again_in_s, "secrets of Kubernetes: what is known stays");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(pauses.longest);
    }
}

struct Watch {
    source: Source,
    secrets: Secrets,
    /// What the cluster is known at; `None`: all must be listed.
    version: Option<String>,
    /// Whether the server has said something useful since this was unset.
    progress: bool,
}

impl Watch {
    /// One connection, from its settings to its end.
    async fn once(&mut self) -> Result<(), KubernetesError> {
        let source = self.source.clone();
        let access = tokio::task::spawn_blocking(move || source.access()).await;
        // It neither panics nor is it cancelled; were it, the next time is soon.
        let Ok(access) = access else { return Ok(()) };
        let api = Api::new(access?)?;
        let version = match self.version.take() {
            Some(version) => version,
            None => {
                let (all, version) = api.list().await?;
                self.secrets.replace(&all);
                self.progress = true;
                tracing::info!(known = self.secrets.len(), "secrets of Kubernetes are known");
                version
            }
        };
        let mut events = api.watch(self.version.insert(version)).await?;
        while let Some((event, version)) = events.next().await? {
            match event {
                Event::Put(secret) => self.secrets.put(&secret),
                Event::Removed(name) => self.secrets.remove(&name),
                Event::Nothing => {}
            }
            self.progress = true;
            if !version.is_empty() {
                self.version = Some(version);
            }
        }
        Ok(())
    }
}
