//! Rows of the queue.

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::builder::job::{Claimed, Job, JobState};

/// Whether the job waits now that did not before.
pub(super) fn accept_one(db: &Connection, job: &Job, now_ms: i64) -> rusqlite::Result<bool> {
    let digest = job.digest.to_string();
    let known: Option<(i64, String, i64)> = db
        .prepare(
            "SELECT id, state, sequence FROM jobs WHERE registry = ?1 AND repository = ?2 AND digest = ?3 AND target = ?4",
        )?
        .query_row(params![job.registry, job.repository, digest, job.target], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?;
    let sequence: i64 = db.query_row("SELECT coalesce(max(sequence), 0) + 1 FROM jobs", [], |row| row.get(0))?;
    let Some((id, state, known_sequence)) = known else {
        db.prepare(
            "INSERT INTO jobs (registry, repository, digest, target, tag, state, sequence, not_before_ms, accepted_at_ms, \
             changed_at_ms) VALUES (?1, ?2, ?3, ?4, ?5, 'queued', ?6, ?7, ?7, ?7)",
        )?
        .execute(params![job.registry, job.repository, digest, job.target, job.tag, sequence, now_ms])?;
        return Ok(true);
    };
    let begins_anew = match JobState::of(&state) {
        Some(JobState::Failed) => true,
        Some(JobState::Done | JobState::Skipped) if !job.target.is_empty() => db
            .prepare(
                "SELECT EXISTS (SELECT 1 FROM jobs WHERE registry = ?1 AND repository = ?2 AND target = ?3 AND sequence > ?4)",
            )?
            .query_row(params![job.registry, job.repository, job.target, known_sequence], |row| row.get(0))?,
        _ => false,
    };
    if begins_anew {
        db.execute(
            "UPDATE jobs SET state = 'queued', sequence = ?2, attempts = 0, not_before_ms = ?3, accepted_at_ms = ?3, \
             changed_at_ms = ?3, reason = '', result = '', tag = ?4 WHERE id = ?1",
            params![id, sequence, now_ms, job.tag],
        )?;
    }
    Ok(begins_anew)
}

pub(super) fn claimed(row: &Row<'_>) -> rusqlite::Result<Claimed> {
    let digest: String = row.get(3)?;
    let digest = digest.parse().map_err(|error: crate::units::DigestError| {
        rusqlite::Error::FromSqlConversionFailure(3, rusqlite::types::Type::Text, Box::new(error))
    })?;
    let job = Job { registry: row.get(1)?, repository: row.get(2)?, digest, target: row.get(4)?, tag: row.get(5)? };
    Ok(Claimed { id: row.get(0)?, job, attempt: row.get(6)? })
}
