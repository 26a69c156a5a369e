//! Takes jobs out of the queue, some at a time, and has each end in one of three ways: done, skipped, failed; or puts it
//! back for later.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use tokio::sync::{Notify, Semaphore, mpsc, watch};

use super::BuilderError;
use super::job::{Claimed, Job, JobState};
use super::metrics::Metrics;
use super::queue::Queue;
use crate::config::{Config, IndexVersion};
use crate::fill::IngestError;
use crate::node::convert::{self, ConvertOptions};
use crate::node::create::{self, CreateOptions, Empty};
use crate::node::indexing::{IndexOptions, PlatformChoice};
use crate::node::one_line;
use crate::node::paths::Paths;
use crate::node::protocol::{LoginOrder, RegistryAccess};
use crate::node::survey::{SurveyKind, SurveyOptions, SurveyedImage, survey};
use crate::registry::{Backoff, BackoffConfig, Platform, RegistryError};
use crate::soci::{DEFAULT_UPLOADS, SociError};

/// How long the dispatcher sleeps at most while it has nothing to do; a lost wake-up costs no more than this.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// Longest reason that is kept of a failure.
const MAX_REASON_BYTES: usize = 2000;

/// What all jobs share.
pub(super) struct Worker {
    pub paths: Paths,
    pub config: Config,
    pub platforms: Vec<Platform>,
    pub access: RegistryAccess,
    pub login: Option<LoginOrder>,
    pub queue: Queue,
    pub metrics: Metrics,
    /// Something came into the queue, or a job ended.
    pub wake: Notify,
}

/// How a try ended, if not by an error.
enum Outcome {
    Done { result: String, layer_bytes: u64 },
    Skipped(String),
}

impl Worker {
    /// Works until `stopped`, then gives running jobs their grace, and puts back what does not end within it.
    pub(super) async fn run(self: Arc<Self>, mut stopped: watch::Receiver<bool>) -> Result<(), BuilderError> {
        let settings = &self.config.builder;
        let slots = Arc::new(Semaphore::new(settings.jobs));
        let (give_up, given_up) = watch::channel(false);
        loop {
            let slot = tokio::select! {
                biased;
                _ = stopped.wait_for(|stop| *stop) => break,
                slot = Arc::clone(&slots).acquire_owned() => slot,
            };
            // Nobody closes it.
            let Ok(slot) = slot else { break };
            let claimed = self.queue.blocking(|queue| {
                let now = SystemTime::now();
                let claimed = queue.claim(now)?;
                let due = if claimed.is_some() { None } else { queue.next_due(now)? };
                Ok((claimed, due))
            });
            let pause = match claimed.await {
                Ok((Some(claimed), _)) => {
                    let (this, given_up) = (Arc::clone(&self), given_up.clone());
                    // Threads that may block: the flows are written for one thread each, and read local files.
                    tokio::task::spawn_blocking(move || {
                        let runtime = tokio::runtime::Handle::current();
                        runtime.block_on(this.work(claimed, given_up));
                        drop(slot);
                        this.wake.notify_one();
                    });
                    continue;
                }
                Ok((None, due)) => due.unwrap_or(LONGEST_SLEEP).min(LONGEST_SLEEP),
                Err(error) => {
                    tracing::error!(%error, "the queue cannot be read; trying again");
                    Duration::from_secs(5)
                }
            };
            drop(slot);
            tokio::select! {
                _ = stopped.wait_for(|stop| *stop) => break,
                () = self.wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        let all = u32::try_from(settings.jobs).unwrap_or(u32::MAX);
        let grace = Duration::from_secs(settings.stop_grace_s);
        if tokio::time::timeout(grace, slots.acquire_many(all)).await.is_err() {
            give_up.send_replace(true);
            // Dropping a flow is quick; what hangs nevertheless goes back to the queue at the next start.
            let _ = tokio::time::timeout(Duration::from_secs(10), slots.acquire_many(all)).await;
        }
        Ok(())
    }

    /// One try of one job, with its record.
    async fn work(&self, claimed: Claimed, mut given_up: watch::Receiver<bool>) {
        let Claimed { id, job, attempt } = claimed;
        let started = Instant::now();
        let limit = Duration::from_secs(self.config.builder.job_limit_s);
        let tried = tokio::select! {
            biased;
            _ = given_up.wait_for(|give_up| *give_up) => None,
            tried = tokio::time::timeout(limit, self.build(&job)) => Some(tried),
        };
        let image = format!("{}/{}@{}", job.registry, job.repository, job.digest);
        let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (tag, target) = (&job.tag, &job.target);
        let recorded = match tried {
            None => {
                tracing::info!(image, tag, took_ms, "put back: the service stops");
                self.queue.blocking(move |queue| queue.put_back(id)).await
            }
            Some(Ok(Ok(Outcome::Done { result, layer_bytes }))) => {
                self.metrics.built(started.elapsed(), layer_bytes);
                tracing::info!(image, tag, target, index = result, layer_bytes, attempt, took_ms, "done");
                self.end(id, JobState::Done, String::new(), result).await
            }
            Some(Ok(Ok(Outcome::Skipped(reason)))) => {
                tracing::info!(image, tag, reason, took_ms, "skipped");
                self.end(id, JobState::Skipped, reason, String::new()).await
            }
            Some(Ok(Err(error))) => {
                let (reason, again, wish) = (one_line(&error), may_work_later(&error), wish(&error));
                self.failed(id, &image, reason, again, wish, attempt).await
            }
            Some(Err(_)) => {
                let reason = format!("it took longer than {} s (builder.job_limit_s)", limit.as_secs());
                self.failed(id, &image, reason, true, None, attempt).await
            }
        };
        if let Err(error) = recorded {
            tracing::error!(image, %error, "the outcome cannot be recorded; the image is tried again at the next start");
        }
    }

    async fn end(&self, id: i64, state: JobState, reason: String, result: String) -> Result<(), BuilderError> {
        self.metrics.ended(state);
        self.queue.blocking(move |queue| queue.finish(id, state, &reason, &result, SystemTime::now())).await
    }

    async fn failed(
        &self,
        id: i64,
        image: &str,
        reason: String,
        again: bool,
        wish: Option<Duration>,
        attempt: u32,
    ) -> Result<(), BuilderError> {
        let settings = &self.config.builder;
        let reason = shortened(reason);
        if !again || attempt >= settings.max_attempts {
            tracing::error!(image, reason, attempt, "failed");
            return self.end(id, JobState::Failed, reason, String::new()).await;
        }
        let pause = pause(attempt, settings.first_pause_s, settings.longest_pause_s, wish);
        self.metrics.retried();
        tracing::warn!(image, reason, attempt, pause_ms = pause.as_millis(), "trying again later");
        self.queue.blocking(move |queue| queue.retry(id, &reason, pause, SystemTime::now())).await
    }

    async fn build(&self, job: &Job) -> anyhow::Result<Outcome> {
        let image = format!("{}/{}@{}", job.registry, job.repository, job.digest);
        let options = |image: &str| SurveyOptions {
            image: image.to_owned(),
            platforms: self.platforms.clone(),
            access: self.access.clone(),
            login: self.login.clone(),
        };
        let settings = &self.config.builder;
        let images = match survey(&self.config, &options(&image)).await?.kind {
            SurveyKind::Artifact => return Ok(Outcome::Skipped("it is no image".to_owned())),
            SurveyKind::Converted => return Ok(Outcome::Skipped("it carries its index (v2)".to_owned())),
            SurveyKind::Image(images) => images,
        };
        if images.is_empty() {
            return Ok(Outcome::Skipped("it has none of the wanted platforms (builder.platforms)".to_owned()));
        }
        let least = settings.min_image_size.0;
        let large: Vec<&SurveyedImage> = images.iter().filter(|image| image.layer_bytes >= least).collect();
        let Some(layer_bytes) = large.iter().map(|image| image.layer_bytes).reduce(u64::saturating_add) else {
            let largest = images.iter().map(|image| image.layer_bytes).max().unwrap_or_default();
            return Ok(Outcome::Skipped(format!("its layers have {largest} bytes, fewer than {least}")));
        };
        let made = match settings.index {
            IndexVersion::V1 => {
                let missing: Vec<&SurveyedImage> = large.iter().copied().filter(|i| i.index.is_none()).collect();
                if missing.is_empty() {
                    let known = large.iter().filter_map(|image| image.index);
                    return Ok(Outcome::Done { result: listed(known), layer_bytes: 0 });
                }
                let options = CreateOptions {
                    image,
                    push: true,
                    index: self.index_options(&missing),
                    access: self.access.clone(),
                    login: self.login.clone(),
                };
                let created = create::create(&self.paths, &self.config, &options, unheard()).await;
                created.map(|made| {
                    listed(made.images.iter().flat_map(|image| image.index.into_iter().chain(image.own_index)))
                })
            }
            IndexVersion::V2 => {
                let tagged = format!("{}/{}:{}", job.registry, job.repository, job.tag);
                match survey(&self.config, &options(&tagged)).await {
                    Ok(now) if now.digest == job.digest => {}
                    Ok(now) => return Ok(Outcome::Skipped(format!("its tag is another image now: {}", now.digest))),
                    Err(error) => return Err(error).context("looking whether the tag still is this image"),
                }
                let options = ConvertOptions {
                    source: image,
                    target: format!("{}/{}:{}", job.registry, job.repository, job.target),
                    standalone: None,
                    index: self.index_options(&large),
                    uploads: DEFAULT_UPLOADS,
                    access: self.access.clone(),
                    login: self.login.clone(),
                };
                let converted = convert::convert(&self.paths, &self.config, &options, unheard()).await;
                converted.map(|made| made.digest.to_string())
            }
        };
        match made {
            Ok(result) => Ok(Outcome::Done { result, layer_bytes }),
            Err(error) if error.is::<Empty>() => Ok(Outcome::Skipped(shortened(one_line(&error)))),
            Err(error) => Err(error),
        }
    }

    fn index_options(&self, images: &[&SurveyedImage]) -> IndexOptions {
        let named = images.iter().map(|image| image.platform.clone()).filter(|name| !name.is_empty()).collect();
        IndexOptions {
            span_size_bytes: self.config.builder.span_size.0,
            min_layer_bytes: self.config.builder.min_layer_size.0,
            force: false,
            optimize_xattrs: false,
            prefetch_files: Vec::new(),
            prefetch_program: self.config.builder.prefetch_program,
            platforms: PlatformChoice { named, all: false },
        }
    }
}

/// Progress that nobody watches.
fn unheard() -> mpsc::UnboundedSender<crate::node::protocol::Progress> {
    mpsc::unbounded_channel().0
}

fn listed(digests: impl Iterator<Item = crate::units::Digest>) -> String {
    digests.map(|digest| digest.to_string()).collect::<Vec<_>>().join(" ")
}

/// The pause after this many tries: as the registry client's, but counted on disk.
fn pause(attempt: u32, first_s: u64, longest_s: u64, wish: Option<Duration>) -> Duration {
    let first = Duration::from_secs(first_s).saturating_mul(1 << attempt.saturating_sub(1).min(20));
    let longest = Duration::from_secs(longest_s);
    let config = BackoffConfig { first: first.min(longest), longest, retries: None };
    Backoff::new(config).next_pause(wish).unwrap_or(longest)
}

fn shortened(mut reason: String) -> String {
    if reason.len() > MAX_REASON_BYTES {
        let end = (0..=MAX_REASON_BYTES).rev().find(|at| reason.is_char_boundary(*at)).unwrap_or_default();
        reason.truncate(end);
        reason.push('…');
    }
    reason
}

fn registry_errors(error: &anyhow::Error) -> impl Iterator<Item = &RegistryError> {
    error.chain().filter_map(|cause| match cause.downcast_ref::<SociError>() {
        Some(SociError::Registry(error)) => Some(error),
        _ => cause.downcast_ref::<RegistryError>(),
    })
}

fn wish(error: &anyhow::Error) -> Option<Duration> {
    registry_errors(error).find_map(RegistryError::retry_after)
}

/// Whether another try can end otherwise. What is not there may still be on its way to a mirror, and credentials are
/// put right by people; an image that contradicts itself stays so.
fn may_work_later(error: &anyhow::Error) -> bool {
    let of_registry = |error: &RegistryError| {
        error.is_transient() || error.is_not_found() || error.is_auth() || matches!(error, RegistryError::Io { .. })
    };
    let local = |error: &SociError| {
        matches!(
            error,
            SociError::Store { .. }
                | SociError::Locked { .. }
                | SociError::Database { .. }
                | SociError::Corrupt { .. }
                | SociError::NotInStore { .. }
        )
    };
    registry_errors(error).any(of_registry)
        || error.chain().any(|cause| {
            cause.downcast_ref::<SociError>().is_some_and(local)
                || matches!(
                    cause.downcast_ref::<IngestError>(),
                    Some(IngestError::Fetch(_) | IngestError::Stopped { .. } | IngestError::Cache(_))
                )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_tried_again() {
        let status = |status| RegistryError::Status {
            url: "u".into(),
            status,
            message: String::new(),
            retry_after: Some(Duration::from_secs(7)),
        };
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let refused = SociError::Refused { registry: "r".into(), source: Box::new(status(400)) };
        for (error, want) in [
            (anyhow::Error::from(status(503)), true),
            (anyhow::Error::from(status(429)).context("resolving"), true),
            (anyhow::Error::from(SociError::from(status(500))).context("pushing"), true),
            (RegistryError::NotFound { url: "u".into() }.into(), true),
            (RegistryError::Auth { host: "h".into(), what: "w".into(), reason: "r".into() }.into(), true),
            (SociError::Store { path: "/".into(), source: full() }.into(), true),
            (status(400).into(), false),
            (refused.into(), false),
            (RegistryError::Document { what: "w".into(), reason: "r".into() }.into(), false),
            (SociError::Empty.into(), false),
            (anyhow::anyhow!("something else"), false),
        ] {
            assert_eq!(may_work_later(&error), want, "{error:#}");
        }
        assert_eq!(wish(&anyhow::Error::from(SociError::from(status(429))).context("x")), Some(Duration::from_secs(7)));
    }

    #[test]
    fn pauses_grow_to_their_bound() {
        for (attempt, bound_s) in [(1, 5), (2, 10), (3, 20), (8, 600), (40, 600), (u32::MAX, 600)] {
            let (pause, bound) = (pause(attempt, 5, 600, None), Duration::from_secs(bound_s));
            assert!(bound / 2 <= pause && pause <= bound, "try {attempt}: {pause:?}");
        }
        assert_eq!(pause(1, 5, 600, Some(Duration::from_secs(100))), Duration::from_secs(100));
    }

    #[test]
    fn long_reasons_are_cut_between_characters() {
        let long = shortened("é".repeat(MAX_REASON_BYTES));
        assert!(long.len() <= MAX_REASON_BYTES + 3 && long.ends_with('…'));
        assert_eq!(shortened("short".into()), "short");
    }
}
