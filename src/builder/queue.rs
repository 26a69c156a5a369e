//! The durable queue: `ROOT/builder.db`, SQLite in WAL mode, synced at every commit.
//!
//! One row for each image and destination. A row is what makes an image be built once: it is added before a
//! notification is answered, and stays for a while after the work is done. What runs when the process dies is in the state
//! `running`, and goes back to `queued` at the next start; each try is counted when it begins, so that an image that
//! kills the process is not tried forever.
//!
//! A converted image (v2) goes under a tag, which later pushes overwrite. Jobs for the same tag run one after the other,
//! and a finished one is done again when its image is pushed again after another one was.

mod rows;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, named_params, params};

use self::rows::{accept_one, claimed};
use super::BuilderError;
use super::job::{Accepted, Claimed, Counts, Job, JobRow, JobState, Status};
use crate::database::{Check, Format, Found};

/// How long a lock of SQLite's is waited for: only `--status` reads beside the service.
const BUSY_LIMIT: Duration = Duration::from_secs(5);

const FORMAT: Format = Format {
    // "sbq1"
    application_id: 0x7362_7131,
    version: 1,
    schema: SCHEMA,
    cache_kib: 1024,
    check: Check::Owner,
};

const SCHEMA: &str = "
CREATE TABLE jobs (
    id             INTEGER PRIMARY KEY,
    registry       TEXT NOT NULL,
    repository     TEXT NOT NULL,
    digest         TEXT NOT NULL,
    target         TEXT NOT NULL,
    tag            TEXT NOT NULL,
    state          TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'skipped', 'failed')),
    sequence       INTEGER NOT NULL,
    attempts       INTEGER NOT NULL DEFAULT 0,
    not_before_ms  INTEGER NOT NULL,
    accepted_at_ms INTEGER NOT NULL,
    changed_at_ms  INTEGER NOT NULL,
    reason         TEXT NOT NULL DEFAULT '',
    result         TEXT NOT NULL DEFAULT '',
    UNIQUE (registry, repository, digest, target)
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, not_before_ms, id);
CREATE INDEX jobs_by_target ON jobs (registry, repository, target);
CREATE INDEX jobs_by_sequence ON jobs (sequence);
";

/// The queue.
#[derive(Debug, Clone)]
pub struct Queue {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    connection: Mutex<Connection>,
}

fn to_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn limit_of(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl Queue {
    /// Opens or makes the queue.
    ///
    /// # Errors
    /// [`BuilderError::Database`], [`BuilderError::Foreign`].
    pub fn open(path: &Path) -> Result<Self, BuilderError> {
        Self::connect(path, true)
    }

    /// Opens the queue to look at it, beside a service that runs.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_to_read(path: &Path) -> Result<Self, BuilderError> {
        Self::connect(path, false)
    }

    fn connect(path: &Path, create: bool) -> Result<Self, BuilderError> {
        let foreign = |reason: &str| BuilderError::Foreign { path: path.to_owned(), reason: reason.to_owned() };
        let opened = FORMAT.open(path, create, BUSY_LIMIT);
        let (connection, found) = opened.map_err(|source| BuilderError::Database { path: path.to_owned(), source })?;
        match found {
            Found::Empty | Found::Ours => {}
            Found::OtherVersion(_) => return Err(foreign("it was written by another version of sociblk")),
            Found::Foreign => return Err(foreign("it is a database of something else")),
        }
        Ok(Self { inner: Arc::new(Inner { path: path.to_owned(), connection: Mutex::new(connection) }) })
    }

    fn with<T>(&self, run: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T, BuilderError> {
        let mut connection = self.inner.connection.lock().unwrap_or_else(PoisonError::into_inner);
        run(&mut connection).map_err(|source| BuilderError::Database { path: self.inner.path.clone(), source })
    }

    /// Runs a blocking call on a thread that may block.
    ///
    /// # Errors
    /// What the call gives; [`BuilderError::Runtime`] when the runtime ends meanwhile.
    pub async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Self) -> Result<T, BuilderError> + Send + 'static,
    ) -> Result<T, BuilderError> {
        let queue = self.clone();
        let done = tokio::task::spawn_blocking(move || call(&queue)).await;
        done.map_err(|e| BuilderError::Runtime { source: std::io::Error::other(e) })?
    }

    /// Puts jobs into the queue, all or none; they are on disk when this returns. Jobs that are known are left as they
    /// are, but for failed ones, which begin anew.
    ///
    /// # Errors
    /// [`BuilderError::Full`] with more than `max_queued` waiting, [`BuilderError::Database`].
    pub fn accept(&self, jobs: &[Job], now: SystemTime, max_queued: u64) -> Result<Accepted, BuilderError> {
        let now_ms = to_ms(now);
        let accepted = self.with(|connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut told = Accepted::default();
            for job in jobs {
                match accept_one(&transaction, job, now_ms)? {
                    true => told.accepted += 1,
                    false => told.duplicates += 1,
                }
            }
            let waiting: i64 =
                transaction.query_row("SELECT count(*) FROM jobs WHERE state = 'queued'", [], |row| row.get(0))?;
            if told.accepted > 0 && waiting > limit_of(max_queued) {
                return Ok(None);
            }
            transaction.commit()?;
            Ok(Some(told))
        })?;
        accepted.ok_or(BuilderError::Full { limit: max_queued })
    }

    /// Takes up the job whose turn it is.
    ///
    /// # Errors
    /// [`BuilderError::Database`].
    pub fn claim(&self, now: SystemTime) -> Result<Option<Claimed>, BuilderError> {
        self.with(|connection| {
            connection
                .query_row(
                    "UPDATE jobs SET state = 'running', attempts = attempts + 1, changed_at_ms = :now WHERE id = (
                         SELECT id FROM jobs AS next WHERE state = 'queued' AND not_before_ms <= :now
                             AND (target = '' OR NOT EXISTS (SELECT 1 FROM jobs AS other
                                 WHERE other.registry = next.registry AND other.repository = next.repository
                                 AND other.target = next.target AND other.state = 'running'))
                         ORDER BY not_before_ms, id LIMIT 1)
                     RETURNING id, registry, repository, digest, target, tag, attempts",
                    named_params! {":now": to_ms(now)},
                    claimed,
                )
                .optional()
        })
    }

    /// How long until a job that waits for its next try may be taken up; `None`: nothing waits for a time.
    ///
    /// # Errors
    /// [`BuilderError::Database`].
    pub fn next_due(&self, now: SystemTime) -> Result<Option<Duration>, BuilderError> {
        let now_ms = to_ms(now);
        let sql = "SELECT min(not_before_ms) FROM jobs WHERE state = 'queued' AND not_before_ms > ?1";
        let due: Option<i64> = self.with(|connection| connection.query_row(sql, [now_ms], |row| row.get(0)))?;
        let wait = due.map(|due| u64::try_from(due.saturating_sub(now_ms)).unwrap_or_default());
        Ok(wait.map(Duration::from_millis))
    }

    /// Records how a job ended.
    ///
    /// # Errors
    /// [`BuilderError::Database`].
    pub fn finish(
        &self,
        id: i64,
        state: JobState,
        reason: &str,
        result: &str,
        now: SystemTime,
    ) -> Result<(), BuilderError> {
        self.with(|connection| {
            connection.execute(
                "UPDATE jobs SET state = ?2, reason = ?3, result = ?4, changed_at_ms = ?5 WHERE id = ?1",
                params![id, state.word(), reason, result, to_ms(now)],
            )
        })?;
        Ok(())
    }

    /// Puts a job back for another try after `pause`.
    ///
    /// # Errors
    /// [`BuilderError::Database`].
    pub fn retry(&self, id: i64, reason: &str, pause: Duration, now: SystemTime) -> Result<(), BuilderError> {
        self.with(|connection| {
            connection.execute(
                "UPDATE jobs SET state = 'queued', reason = ?2, not_before_ms = ?3, changed_at_ms = ?4 WHERE id = ?1",
                params![id, reason, to_ms(now + pause), to_ms(now)],
            )
        })?;
        Ok(())
    }

    /// Puts a job back as if it had not been taken up: the service stops.
    ///
    /// # Errors
    /// [`BuilderError::Database`].
    pub fn put_back(&self, id: i64) -> Result<(), BuilderError> {
        let sql = "UPDATE jobs SET state = 'queued', attempts = max(attempts - 1, 0) WHERE id = ?1";
        self.with(|connection| connection.execute(sql, [id]))?;
        Ok(())
    }

    /// At start: what ran when the last process died waits again, but for what was tried too often. How many of each.
    ///
    /// # Errors
    /// [`BuilderError::Database`].
    pub fn recover(&self, max_attempts: u32, now: SystemTime) -> Result<(u64, u64), BuilderError> {
        self.with(|connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let failed = transaction.execute(
                "UPDATE jobs SET state = 'failed', changed_at_ms = ?2,
                     reason = 'the service died while it worked on this image, ' || attempts || ' times'
                 WHERE state = 'running' AND attempts >= ?1",
                params![max_attempts, to_ms(now)],
            )?;
            let queued = transaction.execute("UPDATE jobs SET state = 'queued' WHERE state = 'running'", [])?;
            transaction.commit()?;
            Ok((queued as u64, failed as u64))
        })
    }

    /// Forgets finished jobs beyond the limits. How many.
    ///
    /// # Errors
    /// [`BuilderError::Database`].
    pub fn forget(&self, keep: Duration, keep_finished: u64, now: SystemTime) -> Result<u64, BuilderError> {
        let before_ms = to_ms(now).saturating_sub(i64::try_from(keep.as_millis()).unwrap_or(i64::MAX));
        let gone = self.with(|connection| {
            connection.execute(
                "DELETE FROM jobs WHERE state IN ('done', 'skipped', 'failed') AND (changed_at_ms < ?1 OR id NOT IN (
                     SELECT id FROM jobs WHERE state IN ('done', 'skipped', 'failed')
                     ORDER BY changed_at_ms DESC, id DESC LIMIT ?2))",
                params![before_ms, limit_of(keep_finished)],
            )
        })?;
        Ok(gone as u64)
    }

    /// Jobs in each state.
    ///
    /// # Errors
    /// [`BuilderError::Database`].
    pub fn counts(&self) -> Result<Counts, BuilderError> {
        self.with(|connection| {
            let mut counts = Counts::default();
            let mut rows = connection.prepare("SELECT state, count(*) FROM jobs GROUP BY state")?;
            for row in rows.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))? {
                let (state, count) = row?;
                let count = u64::try_from(count).unwrap_or_default();
                match JobState::of(&state) {
                    Some(JobState::Queued) => counts.queued = count,
                    Some(JobState::Running) => counts.running = count,
                    Some(JobState::Done) => counts.done = count,
                    Some(JobState::Skipped) => counts.skipped = count,
                    Some(JobState::Failed) => counts.failed = count,
                    None => {}
                }
            }
            Ok(counts)
        })
    }

    /// Counts, and the latest `limit` jobs (of one state, if it is named).
    ///
    /// # Errors
    /// [`BuilderError::Database`].
    pub fn status(&self, state: Option<JobState>, limit: u64) -> Result<Status, BuilderError> {
        let jobs = self.with(|connection| {
            let mut rows = connection.prepare(
                "SELECT registry || '/' || repository || '@' || digest, tag, target, state, attempts, accepted_at_ms,
                     changed_at_ms, reason, result
                 FROM jobs WHERE ?1 = '' OR state = ?1 ORDER BY changed_at_ms DESC, id DESC LIMIT ?2",
            )?;
            let state = state.map(JobState::word).unwrap_or_default();
            let found = rows.query_map(params![state, limit_of(limit)], |row| {
                Ok(JobRow {
                    image: row.get(0)?,
                    tag: row.get(1)?,
                    target: row.get(2)?,
                    state: row.get(3)?,
                    attempts: row.get(4)?,
                    accepted_at_ms: row.get(5)?,
                    changed_at_ms: row.get(6)?,
                    reason: row.get(7)?,
                    result: row.get(8)?,
                })
            })?;
            found.collect()
        })?;
        Ok(Status { counts: self.counts()?, jobs })
    }
}

#[cfg(test)]
#[path = "tests/queue.rs"]
mod tests;
