//! What the queue holds: jobs, their states, and what is shown of them.

use crate::units::Digest;

/// What is to be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// The registry.
    pub registry: String,
    /// The repository.
    pub repository: String,
    /// The image: a manifest or index.
    pub digest: Digest,
    /// Tag of the converted image; empty: an index (v1) beside the image.
    pub target: String,
    /// Tag that the image was pushed under; may be empty.
    pub tag: String,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobState {
    /// It waits, perhaps for its next try.
    Queued,
    /// It is worked on.
    Running,
    /// The registry has the index.
    Done,
    /// Nothing is to be built of it.
    Skipped,
    /// It was given up.
    Failed,
}

impl JobState {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Queued, Self::Running, Self::Done, Self::Skipped, Self::Failed];

    /// Its name in the database, metrics and answers.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
        }
    }

    /// The state of this name.
    #[must_use]
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.word() == word)
    }
}

/// A job that was taken up.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// Its row.
    pub id: i64,
    /// What is to be built.
    pub job: Job,
    /// Which try this is, from 1.
    pub attempt: u32,
}

/// What became of the images of one notification.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Accepted {
    /// They are in the queue now.
    pub accepted: u64,
    /// They were known already.
    pub duplicates: u64,
}

/// Jobs in each state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// See [`JobState`].
    pub queued: u64,
    /// See [`JobState`].
    pub running: u64,
    /// See [`JobState`].
    pub done: u64,
    /// See [`JobState`].
    pub skipped: u64,
    /// See [`JobState`].
    pub failed: u64,
}

impl Counts {
    /// Jobs in this state.
    #[must_use]
    pub fn of(&self, state: JobState) -> u64 {
        match state {
            JobState::Queued => self.queued,
            JobState::Running => self.running,
            JobState::Done => self.done,
            JobState::Skipped => self.skipped,
            JobState::Failed => self.failed,
        }
    }
}

/// A job as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct JobRow {
    /// `REGISTRY/REPOSITORY@DIGEST`.
    pub image: String,
    /// Tag that it was pushed under.
    pub tag: String,
    /// Tag of the converted image; empty for v1.
    pub target: String,
    /// Its state's name.
    pub state: String,
    /// How often it was tried.
    pub attempts: u32,
    /// When it was accepted, in ms since 1970.
    pub accepted_at_ms: i64,
    /// When it came into its state, in ms since 1970.
    pub changed_at_ms: i64,
    /// What went wrong, or why it was skipped.
    pub reason: String,
    /// Digests of what was made.
    pub result: String,
}

/// The whole queue for people.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Status {
    /// Jobs in each state.
    pub counts: Counts,
    /// The latest jobs, those that changed last first.
    pub jobs: Vec<JobRow>,
}
