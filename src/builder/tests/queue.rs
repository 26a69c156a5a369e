use super::*;
use crate::units::Digest;

fn job(n: u64, target: &str) -> Job {
    Job {
        registry: "r.example".into(),
        repository: "team/app".into(),
        digest: Digest::of(&n.to_le_bytes()),
        target: target.into(),
        tag: "1".into(),
    }
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
}

fn told(accepted: u64, duplicates: u64) -> Accepted {
    Accepted { accepted, duplicates }
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("builder.db")
    }

    fn open(&self) -> Queue {
        Queue::open(&self.path()).expect("a queue")
    }
}

#[test]
fn an_image_is_queued_once_whatever_happens() {
    let place = Place::new();
    let queue = place.open();
    assert_eq!(queue.accept(&[job(1, ""), job(2, ""), job(1, "")], at(0), 9).expect("room"), told(2, 1));
    assert_eq!(queue.accept(&[job(2, "")], at(1), 9).expect("room"), told(0, 1));
    let first = queue.claim(at(2)).expect("a queue").expect("a job");
    assert_eq!((first.job, first.attempt), (job(1, ""), 1));
    assert_eq!(queue.accept(&[job(1, "")], at(3), 9).expect("room"), told(0, 1));
    queue.finish(first.id, JobState::Done, "", "sha256:x", at(4)).expect("a queue");
    drop(queue);
    let queue = place.open();
    assert_eq!(queue.accept(&[job(1, ""), job(2, "")], at(5), 9).expect("room"), told(0, 2));
    let second = queue.claim(at(6)).expect("a queue").expect("a job");
    assert_eq!(second.job, job(2, ""));
    assert!(queue.claim(at(7)).expect("a queue").is_none());
    queue.finish(second.id, JobState::Failed, "bad", "", at(8)).expect("a queue");
    assert_eq!(queue.accept(&[job(2, "")], at(9), 9).expect("room"), told(1, 0), "a failed one begins anew");
    let again = queue.claim(at(10)).expect("a queue").expect("a job");
    assert_eq!((again.id, again.attempt), (second.id, 1));
}

#[test]
fn what_ran_at_a_crash_waits_again_but_not_forever() {
    let place = Place::new();
    place.open().accept(&[job(1, "")], at(0), 9).expect("room");
    for attempt in 1..=3 {
        let queue = place.open();
        assert_eq!(queue.claim(at(attempt)).expect("a queue").expect("a job").attempt, attempt as u32);
        // The process dies.
        drop(queue);
        let want = if attempt == 3 { (0, 1) } else { (1, 0) };
        assert_eq!(place.open().recover(3, at(attempt)).expect("a queue"), want);
    }
    let status = place.open().status(Some(JobState::Failed), 9).expect("a queue");
    assert_eq!(status.counts, Counts { failed: 1, ..Counts::default() });
    assert!(status.jobs[0].reason.contains("died") && status.jobs[0].reason.contains("3 times"), "{status:?}");
}

#[test]
fn one_that_is_put_back_loses_no_try() {
    let place = Place::new();
    let queue = place.open();
    queue.accept(&[job(1, "")], at(0), 9).expect("room");
    for _ in 0..5 {
        let claimed = queue.claim(at(1)).expect("a queue").expect("a job");
        assert_eq!(claimed.attempt, 1);
        queue.put_back(claimed.id).expect("a queue");
    }
}

#[test]
fn retries_wait_and_block_nobody() {
    let place = Place::new();
    let queue = place.open();
    queue.accept(&[job(1, ""), job(2, "")], at(0), 9).expect("room");
    let bad = queue.claim(at(0)).expect("a queue").expect("a job");
    queue.retry(bad.id, "503", Duration::from_secs(60), at(1)).expect("a queue");
    assert_eq!(queue.claim(at(1)).expect("a queue").expect("a job").job, job(2, ""));
    assert!(queue.claim(at(60)).expect("a queue").is_none());
    assert_eq!(queue.next_due(at(31)).expect("a queue"), Some(Duration::from_secs(30)));
    let again = queue.claim(at(61)).expect("a queue").expect("a job");
    assert_eq!((again.job, again.attempt), (job(1, ""), 2));
    assert_eq!(queue.next_due(at(62)).expect("a queue"), None);
}

#[test]
fn jobs_for_one_tag_run_one_after_the_other_and_the_last_push_wins() {
    let place = Place::new();
    let queue = place.open();
    queue.accept(&[job(1, "1-soci"), job(2, "1-soci"), job(3, "2-soci")], at(0), 9).expect("room");
    let first = queue.claim(at(1)).expect("a queue").expect("a job");
    let other = queue.claim(at(1)).expect("a queue").expect("a job");
    assert_eq!((first.job, other.job), (job(1, "1-soci"), job(3, "2-soci")), "two is for the tag that one is for");
    assert!(queue.claim(at(1)).expect("a queue").is_none());
    queue.finish(first.id, JobState::Done, "", "", at(2)).expect("a queue");
    let second = queue.claim(at(2)).expect("a queue").expect("a job");
    assert_eq!(second.job, job(2, "1-soci"));
    queue.finish(second.id, JobState::Done, "", "", at(3)).expect("a queue");
    assert_eq!(queue.accept(&[job(2, "1-soci")], at(4), 9).expect("room"), told(0, 1), "it is the last");
    assert_eq!(queue.accept(&[job(1, "1-soci")], at(5), 9).expect("room"), told(1, 0), "its tag was overwritten");
    assert_eq!(queue.accept(&[job(1, "1-soci")], at(6), 9).expect("room"), told(0, 1));
    assert_eq!(queue.accept(&[job(1, "3-soci")], at(7), 9).expect("room"), told(1, 0), "another tag of the same image");
}

#[test]
fn a_full_queue_takes_all_of_a_notification_or_nothing() {
    let place = Place::new();
    let queue = place.open();
    queue.accept(&[job(1, ""), job(2, "")], at(0), 3).expect("room");
    let full = queue.accept(&[job(3, ""), job(4, "")], at(1), 3);
    assert!(matches!(full, Err(BuilderError::Full { limit: 3 })));
    assert_eq!(queue.counts().expect("a queue").queued, 2);
    assert_eq!(queue.accept(&[job(3, "")], at(2), 3).expect("room"), told(1, 0));
    assert_eq!(queue.accept(&[job(3, "")], at(2), 1).expect("duplicates need no room"), told(0, 1));
}

#[test]
fn finished_images_are_forgotten_by_age_and_number() {
    let place = Place::new();
    let queue = place.open();
    let jobs: Vec<Job> = (0..6).map(|n| job(n, "")).collect();
    queue.accept(&jobs, at(0), 9).expect("room");
    for n in 0..5 {
        let claimed = queue.claim(at(1)).expect("a queue").expect("a job");
        queue.finish(claimed.id, JobState::Done, "", "", at(10 * n)).expect("a queue");
    }
    assert_eq!(queue.forget(Duration::from_secs(25), 9, at(40)).expect("a queue"), 2, "those of 0 and 10");
    assert_eq!(queue.forget(Duration::from_secs(1000), 1, at(40)).expect("a queue"), 2, "all but the latest");
    let counts = Counts { queued: 1, done: 1, ..Counts::default() };
    assert_eq!(queue.counts().expect("a queue"), counts);
    assert_eq!(queue.accept(&jobs[..1], at(50), 9).expect("room"), told(1, 0));
}

/// The files as a crash leaves them: copied while the queue is open, the log cut off anywhere.
#[test]
fn a_log_that_is_cut_off_anywhere_holds_what_was_answered_before() {
    let place = Place::new();
    let queue = place.open();
    let wal = |place: &Place| place.0.path().join("builder.db-wal");
    let mut lengths = Vec::new();
    for n in 0..5 {
        queue.accept(&[job(n, "")], at(n), 100).expect("room");
        lengths.push(std::fs::metadata(wal(&place)).expect("a log").len());
    }
    let (database, log) = (std::fs::read(place.path()).expect("a file"), std::fs::read(wal(&place)).expect("a log"));
    let begins = lengths[0];
    for cut in (begins..=log.len() as u64).step_by(997).chain(lengths.iter().copied()) {
        let crashed = Place::new();
        std::fs::write(crashed.path(), &database).expect("written");
        std::fs::write(wal(&crashed), &log[..usize::try_from(cut).expect("small")]).expect("written");
        let queue = crashed.open();
        let answered = lengths.iter().filter(|length| **length <= cut).count() as u64;
        assert_eq!(queue.counts().expect("a queue").queued, answered, "cut at {cut} of {}", log.len());
        // What was lost was not answered, and comes again.
        let all: Vec<Job> = (0..5).map(|n| job(n, "")).collect();
        assert_eq!(queue.accept(&all, at(9), 100).expect("room"), told(5 - answered, answered));
    }
}

#[test]
fn foreign_files_are_left_alone() {
    let place = Place::new();
    std::fs::write(
        place.path(),
        "not a database, and longer than a header of one has to be to be looked at at all. ".repeat(9),
    )
    .expect("written");
    assert!(matches!(Queue::open(&place.path()), Err(BuilderError::Database { .. })));
    for sql in
        ["PRAGMA application_id = 5; CREATE TABLE x (y)", "PRAGMA application_id = 1935831345; PRAGMA user_version = 9"]
    {
        let place = Place::new();
        Connection::open(place.path()).and_then(|db| db.execute_batch(sql)).expect("a database");
        assert!(matches!(Queue::open(&place.path()), Err(BuilderError::Foreign { .. })), "{sql}");
    }
    assert!(Queue::open_to_read(&Place::new().path()).is_err(), "looking makes no file");
}
