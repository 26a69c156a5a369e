//! When to try again.

use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use super::RegistryError;

/// Settings of a [`Backoff`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackoffConfig {
    /// Upper bound of the first pause.
    pub first: Duration,
    /// Upper bound of any pause, also of one that the registry asks for.
    pub longest: Duration,
    /// How many times to try again; `None`: forever.
    pub retries: Option<u32>,
}

impl Default for BackoffConfig {
    /// For documents: 4 retries within some 2 seconds. The fill scheduler, which holds readers, goes on for longer.
    fn default() -> Self {
        Self { first: Duration::from_millis(100), longest: Duration::from_secs(20), retries: Some(4) }
    }
}

/// A growing pause with jitter: each is drawn from the upper half of a bound that doubles, so that readers which failed
/// together do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    config: BackoffConfig,
    attempt: u32,
    random: u64,
}

impl Backoff {
    /// A backoff that has seen no failure.
    #[must_use]
    pub fn new(config: BackoffConfig) -> Self {
        // The standard library's hasher keys are the one source of randomness that needs no dependency; | 1 because
        // xorshift stays at 0 forever.
        let random = RandomState::new().build_hasher().finish() | 1;
        Self { config, attempt: 0, random }
    }

    /// The pause before the next try, or `None` when it is time to give up. A wish of the registry (`Retry-After`)
    /// lengthens it, up to the longest pause.
    pub fn next_pause(&mut self, retry_after: Option<Duration>) -> Option<Duration> {
        if self.config.retries.is_some_and(|retries| self.attempt >= retries) {
            return None;
        }
        let doublings = self.attempt.min(30);
        self.attempt = self.attempt.saturating_add(1);
        let bound = self.config.first.saturating_mul(1 << doublings).min(self.config.longest);
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let half = bound / 2;
        let share = u32::try_from(self.random >> 32).unwrap_or(u32::MAX);
        let pause = half + half.mul_f64(f64::from(share) / f64::from(u32::MAX));
        Some(retry_after.map_or(pause, |wish| wish.max(pause)).min(self.config.longest.max(bound)))
    }

    /// How many pauses were given since the start or the last reset.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempt
    }

    /// Something worked: the next pause is short again.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

/// Runs `attempt` until it works, fails for good, or the backoff gives up; the last error comes back.
///
/// # Errors
/// What the last attempt said.
pub async fn retry<T, F, Fut>(config: BackoffConfig, mut attempt: F) -> Result<T, RegistryError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, RegistryError>>,
{
    let mut backoff = Backoff::new(config);
    loop {
        match attempt().await {
            Err(error) if error.is_transient() => match backoff.next_pause(error.retry_after()) {
                Some(pause) => {
                    tracing::debug!(%error, pause_ms = pause.as_millis(), "trying again");
                    tokio::time::sleep(pause).await;
                }
                None => return Err(error),
            },
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_stay_in_the_upper_half_and_end() {
        let config =
            BackoffConfig { first: Duration::from_millis(100), longest: Duration::from_millis(500), retries: Some(5) };
        let mut backoff = Backoff::new(config);
        for bound_ms in [100, 200, 400, 500, 500] {
            let pause = backoff.next_pause(None).expect("within the retries");
            let bound = Duration::from_millis(bound_ms);
            assert!(bound / 2 <= pause && pause <= bound, "{pause:?} of {bound:?}");
        }
        assert_eq!(backoff.next_pause(None), None);
        backoff.reset();
        assert!(backoff.next_pause(None).is_some());
    }

    #[test]
    fn the_registrys_wish_counts_but_not_without_end() {
        let config = BackoffConfig { longest: Duration::from_secs(10), ..BackoffConfig::default() };
        let mut backoff = Backoff::new(config);
        assert_eq!(backoff.next_pause(Some(Duration::from_secs(3))), Some(Duration::from_secs(3)));
        assert_eq!(backoff.next_pause(Some(Duration::from_secs(86_400))), Some(Duration::from_secs(10)));
    }

    #[test]
    fn backoffs_of_one_moment_differ() {
        let pauses: std::collections::HashSet<_> =
            (0..32).map(|_| Backoff::new(BackoffConfig::default()).next_pause(None)).collect();
        assert!(pauses.len() > 16, "{pauses:?}");
    }
}
