#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a parent process reads it; what is skipped is said")]

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use rusqlite::Connection;

use super::steps::testing::{At, plan, unreached};
use super::*;

/// What a child process of these tests shall do: `ROLE NUMBER DIRECTORY`.
const ROLE: &str = "SOCIBLK_STORE_TEST_ROLE";

/// Starts this test binary again, to run the test `name` in a role of its own.
fn child(name: &str, role: &str, number: usize, dir: &Path) -> Child {
    Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", &format!("soci::store::tests::trouble::{name}"), "--nocapture"])
        .env(ROLE, format!("{role} {number} {}", dir.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a child process")
}

/// The role of this process, if it is such a child.
fn role() -> Option<(String, usize, PathBuf)> {
    let text = std::env::var(ROLE).ok()?;
    let mut words = text.splitn(3, ' ');
    let (role, number, dir) = (words.next()?, words.next()?, words.next()?);
    Some((role.to_owned(), number.parse().expect("a number"), dir.into()))
}

fn digests(store: &Store) -> Vec<Digest> {
    let mut found: Vec<_> = store.indexes(&IndexFilter::default()).expect("listed").iter().map(|r| r.digest).collect();
    found.sort_unstable();
    found
}

fn record_of(ztoc: &[u8]) -> RecordedZtoc {
    let (digest, size) = (Digest::of(ztoc), BlobOffset::new(ztoc.len() as u64));
    RecordedZtoc { digest, size, span_size_bytes: Some(1 << 22) }
}

/// What may be interrupted; each ends in the same state when it is done again after a crash.
fn operation(name: &str, store: &Store) -> Result<(), SociError> {
    let (kept, gone) = (document(b"kept", vec![ztoc_entry(b"one")]), document(b"gone", vec![ztoc_entry(b"two")]));
    match name {
        "put" => {
            store.put(b"three")?;
            let index = document(b"new", vec![ztoc_entry(b"one"), ztoc_entry(b"three")]);
            store.put_index(V1_TYPE, &index).map(drop)
        }
        "record" => {
            store.put(b"three")?;
            store.record_ztoc(&layer_of(b"three"), &record_of(b"three"))
        }
        "remove" => match store.remove_indexes(&[Digest::of(&gone)], &HashSet::new()) {
            Err(SociError::NotInStore { .. }) => Ok(()),
            other => other.map(drop),
        },
        "sweep" => store.sweep(SystemTime::now() + Duration::from_secs(60), &HashSet::new()).map(drop),
        "rebuild" => store.rebuild().map(drop),
        "map" => {
            let manifest = Digest::of(b"kept");
            let image = IndexedImage { manifest, image_ref: None, platform: None, set_by: SetBy::User };
            store.map_image(&image, &Digest::of(&kept))
        }
        "repair" => {
            // A new file: over the old one SQLite would still find all its pages in the log. Done again, it is as it was left.
            let path = &store.inner.database.path;
            let beside = |suffix: &str| PathBuf::from(format!("{}{suffix}", path.display()));
            if path.exists() {
                fs::write(beside(".new"), b"what is this? it goes on for a while").expect("written");
                fs::rename(beside(".new"), path).expect("in place");
                for suffix in ["-wal", "-shm"] {
                    drop(fs::remove_file(beside(suffix)));
                }
            }
            Store::open(path.parent().expect("a root")).map(drop)
        }
        other => panic!("no operation {other}"),
    }
}

/// A store with something to interrupt: two indexes, a stray blob, a zTOC without an index.
fn furnish(store: &Store) {
    for (image, ztoc) in [(&b"kept"[..], &b"one"[..]), (b"gone", b"two")] {
        store.put(ztoc).expect("stored");
        store.record_ztoc(&layer_of(ztoc), &record_of(ztoc)).expect("recorded");
        store.put_index(V1_TYPE, &index_of(store, image, &[ztoc])).expect("stored");
    }
    store.put(b"stray").expect("stored");
}

/// What holds at any time: what is listed is there with its parts, and the files say the same as the database, or more.
fn check(store: &Store, after: &str) {
    let kept = Digest::of(&document(b"kept", vec![ztoc_entry(b"one")]));
    let listed = digests(store);
    assert!(listed.contains(&kept), "{after}: what nobody touched is there");
    for index in &listed {
        let bytes = store.index(index).expect("asked").expect("listed, so there");
        let index = SociIndex::parse(&bytes).expect("an index");
        for ztoc in &index.ztocs {
            assert!(store.contains(&ztoc.digest, ztoc.size), "{after}: a part of a listed index");
        }
    }
    assert_eq!(store.ztoc_for(&layer_of(b"one")).expect("asked"), Some(record_of(b"one")), "{after}");
}

const OPERATIONS: [&str; 7] = ["put", "record", "remove", "sweep", "rebuild", "map", "repair"];

#[test]
fn an_operation_that_fails_at_any_step_can_be_done_again() {
    for name in OPERATIONS {
        for n in 0.. {
            let (dir, store) = open();
            furnish(&store);
            plan(n, At::Fail);
            let done = operation(name, &store);
            if unreached() {
                done.expect("nothing went wrong");
                break;
            }
            done.expect_err("planned");
            check(&store, name);
            operation(name, &store).unwrap_or_else(|e| panic!("{name} after step {n}: {e}"));
            check(&store, name);
            assert!(ingest_is_empty(dir.path()));
        }
    }
}

#[test]
fn a_process_that_is_killed_at_any_step_leaves_a_sound_store() {
    if let Some((name, n, dir)) = role() {
        let store = Store::open(&dir).expect("a store");
        plan(n, At::Die);
        operation(&name, &store).expect("done");
        return;
    }
    for name in OPERATIONS {
        for n in 0.. {
            let (dir, store) = open();
            furnish(&store);
            let mut child = child("a_process_that_is_killed_at_any_step_leaves_a_sound_store", name, n, dir.path());
            let status = child.wait().expect("ended");
            check(&store, name);
            let again = Store::open(dir.path()).expect("a store");
            check(&again, name);
            assert_eq!(digests(&again), digests(&store));
            again.rebuild().expect("rebuilt");
            check(&store, name);
            operation(name, &store).unwrap_or_else(|e| panic!("{name} after step {n}: {e}"));
            store.sweep(SystemTime::now() + Duration::from_secs(60), &HashSet::new()).expect("swept");
            check(&store, name);
            assert!(!store.contains(&Digest::of(b"stray"), BlobOffset::new(5)), "garbage goes");
            if status.success() {
                assert!(n > 0, "{name} has steps");
                break;
            }
        }
    }
}

#[test]
fn processes_at_once_lose_nothing() {
    const EACH: usize = 6;
    if let Some((role, number, dir)) = role() {
        let store = Store::open(&dir).expect("a store");
        for i in 0..EACH {
            let name = format!("{number} {i}");
            let own = name.as_bytes();
            let index = store.put_index(V1_TYPE, &index_of(&store, own, &[b"shared", own])).expect("stored");
            match role.as_str() {
                "remove" if i % 2 == 1 => drop(store.remove_indexes(&[index], &HashSet::new()).expect("removed")),
                "rebuild" => drop(store.rebuild().expect("rebuilt")),
                _ => {}
            }
        }
        return;
    }
    let (dir, store) = open();
    let roles = ["put", "remove", "rebuild"];
    let start = |(number, role)| child("processes_at_once_lose_nothing", role, number, dir.path());
    let children: Vec<Child> = roles.into_iter().enumerate().map(start).collect();
    for mut child in children {
        assert!(child.wait().expect("ended").success());
    }
    let mut want: Vec<Digest> = (0..roles.len())
        .flat_map(|number| (0..EACH).map(move |i| (number, i)))
        .filter(|(number, i)| roles[*number] != "remove" || i % 2 == 0)
        .map(|(number, i)| {
            let name = format!("{number} {i}");
            Digest::of(&document(name.as_bytes(), vec![ztoc_entry(b"shared"), ztoc_entry(name.as_bytes())]))
        })
        .collect();
    want.sort_unstable();
    assert_eq!(digests(&store), want);
    assert_eq!(super::listed(dir.path()).len(), want.len());
    assert_eq!(store.ztocs(None, None).expect("listed").len(), want.len() + 1);
}

#[test]
fn a_damaged_database_is_set_aside_and_made_anew() {
    let kill = |path: &Path| fs::remove_file(path).expect("removed");
    type Damage<'a> = (&'a str, &'a dyn Fn(&Path));
    let cases: [Damage<'_>; 6] = [
        ("no database", &|path| fs::write(path, b"what is this? it goes on for a while").expect("written")),
        ("a torn header", &|path| {
            let mut bytes = fs::read(path).expect("read");
            bytes[16..100].fill(0xff);
            fs::write(path, bytes).expect("written");
        }),
        ("pages of noise", &|path| {
            let mut bytes = fs::read(path).expect("read");
            bytes[4096..].fill(0xa5);
            fs::write(path, bytes).expect("written");
        }),
        ("cut short", &|path| {
            let bytes = fs::read(path).expect("read");
            fs::write(path, &bytes[..bytes.len() / 2 + 100]).expect("written");
        }),
        ("a directory", &|path| {
            kill(path);
            fs::create_dir(path).expect("made");
        }),
        ("of something else", &|path| {
            kill(path);
            let other = Connection::open(path).expect("opened");
            other.execute_batch("CREATE TABLE artifacts (x)").expect("made");
        }),
    ];
    for (name, damage) in cases {
        let (dir, store) = open();
        furnish(&store);
        let before = digests(&store);
        let path = dir.path().join("store.db");
        drop(store);
        damage(&path);
        let store = Store::open(dir.path()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(digests(&store), before, "{name}");
        check(&store, name);
        assert!(dir.path().join("store.db.damaged").exists(), "{name}");
    }
}

#[test]
fn an_absent_or_empty_database_is_made_without_a_word() {
    for empty in [false, true] {
        let (dir, store) = open();
        furnish(&store);
        let before = digests(&store);
        let path = dir.path().join("store.db");
        fs::remove_file(&path).expect("removed");
        if empty {
            fs::write(&path, b"").expect("written");
        }
        assert_eq!(digests(&store), before, "also where the old one is still open");
        assert_eq!(digests(&Store::open(dir.path()).expect("a store")), before);
        assert!(!dir.path().join("store.db.damaged").exists());
    }
}

#[test]
fn who_has_the_damaged_database_open_goes_over_to_the_new_one() {
    let (dir, first) = open();
    furnish(&first);
    let before = digests(&first);
    let path = dir.path().join("store.db");
    fs::rename(&path, dir.path().join("elsewhere")).expect("moved");
    fs::write(&path, b"what is this? it goes on for a while").expect("written");
    let second = Store::open(dir.path()).expect("a store");
    assert_eq!(digests(&second), before);
    let new = first.put_index(V1_TYPE, &index_of(&first, b"new", &[b"three"])).expect("stored");
    assert!(digests(&second).contains(&new) && digests(&first).contains(&new));
}

#[test]
fn the_layout_of_earlier_versions_is_taken_over() {
    let dir = tempfile::tempdir().expect("a directory");
    let blobs = dir.path().join("content/blobs/sha256");
    fs::create_dir_all(&blobs).expect("made");
    fs::create_dir_all(dir.path().join("content/ztoc-by-layer")).expect("made");
    let index = document(b"image", vec![ztoc_entry(b"ztoc")]);
    let unlisted = document(b"another image", vec![ztoc_entry(b"ztoc")]);
    for bytes in [&b"ztoc"[..], &index, &unlisted] {
        fs::write(blobs.join(Digest::of(bytes).hex()), bytes).expect("written");
    }
    let digest = Digest::of(&index);
    let list = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [
        {"mediaType": media_type::OCI_MANIFEST, "digest": digest, "size": index.len(), "artifactType": V1_TYPE}]});
    fs::write(dir.path().join("content/index.json"), list.to_string()).expect("written");
    let layer = layer_of(b"ztoc");
    let line = format!("{} 4 -\n", Digest::of(b"ztoc"));
    fs::write(dir.path().join("content/ztoc-by-layer").join(layer.hex()), line).expect("written");
    let store = Store::open(dir.path()).expect("a store");
    let set_by = |image: &[u8]| {
        let known = store.indexes_of(&Digest::of(image)).expect("asked");
        known.first().and_then(|record| record.image.as_ref()).map(|image| image.set_by)
    };
    assert_eq!(set_by(b"image"), Some(SetBy::Create), "listed, so made here");
    assert_eq!(set_by(b"another image"), Some(SetBy::Registry), "of unknown origin, so not trusted as ours");
    assert_eq!(store.ztoc_for(&layer).expect("asked").map(|z| z.span_size_bytes), Some(None));
}

#[test]
fn a_database_of_a_later_version_is_left_alone() {
    let (dir, store) = open();
    drop(store);
    let path = dir.path().join("store.db");
    Connection::open(&path).expect("opened").pragma_update(None, "user_version", 99).expect("set");
    let error = Store::open(dir.path()).expect_err("of a later version");
    assert!(matches!(error, SociError::LaterDatabase { found: 99, .. }), "{error}");
    assert!(path.exists() && !dir.path().join("store.db.damaged").exists());
}

#[test]
fn a_locked_store_is_waited_for_and_then_says_who_locks_it() {
    if let Some((role, _, dir)) = role() {
        let store = Store::open(&dir).expect("a store");
        let connection = Connection::open(dir.join("store.db")).expect("opened");
        let _lock = match role.as_str() {
            "database" => {
                connection.execute_batch("BEGIN IMMEDIATE").expect("locked");
                None
            }
            _ => Some(store.inner.layout.lock().expect("locked")),
        };
        // The harness may have begun a line.
        println!("\nlocked");
        drop(std::io::stdin().read_to_end(&mut Vec::new()));
        return;
    }
    let (dir, _) = open();
    let limit = Duration::from_millis(50);
    let store = Store::open_within(dir.path(), limit).expect("a store");
    let index = index_of(&store, b"image", &[b"ztoc"]);
    for role in ["database", "store"] {
        let mut child = child("a_locked_store_is_waited_for_and_then_says_who_locks_it", role, 0, dir.path());
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        assert!(lines.any(|line| line.expect("a line") == "locked"));
        assert_eq!(digests(&store), [], "readers do not wait");
        let error = match role {
            "database" => store.put_index(V1_TYPE, &index).expect_err("locked"),
            _ => store.inner.layout.lock_within(limit).map(drop).expect_err("locked"),
        };
        let SociError::Locked { holder, .. } = &error else { panic!("{error}") };
        if std::fs::read_to_string("/proc/locks").is_ok_and(|list| list.contains(&child.id().to_string())) {
            assert!(holder.contains(&format!("process {} ", child.id())), "{error}");
        } else {
            eprintln!("SKIPPED: who locks the store: /proc/locks shows no other process here");
        }
        drop(child.stdin.take());
        child.wait().expect("ended");
    }
    store.put_index(V1_TYPE, &index).expect("stored at last");
}

/// A small file system, unmounted at the end.
struct SmallDisk(tempfile::TempDir);

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(self.0.path()).status());
    }
}

#[test]
fn a_full_disk_is_an_error_and_costs_nothing_that_was_there() {
    let disk = SmallDisk(tempfile::tempdir().expect("a directory"));
    let mount = |options: &str| {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(disk.0.path()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    if !rustix::process::geteuid().is_root() || !mount("size=640k") {
        eprintln!("SKIPPED: a full disk: mounting a tmpfs needs root");
        return;
    }
    let store = Store::open(disk.0.path()).expect("a store");
    furnish(&store);
    let filler = disk.0.path().join("filler");
    let mut full = fs::File::create(&filler).expect("made");
    while full.write(&[1; 4096]).is_ok() {}
    drop(full);
    let mut stored = 0_u8;
    let error = loop {
        let ztoc = [stored; 3000];
        let done = store.put(&ztoc).and_then(|_| store.record_ztoc(&layer_of(&ztoc), &record_of(&ztoc)));
        let done = done.and_then(|()| store.put_index(V1_TYPE, &index_of(&store, &[stored], &[&ztoc])));
        match done {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("o space left"), "{error}");
    check(&store, "full");
    let count = digests(&store).len();
    assert!(count >= 2 + usize::from(stored), "{count} of {stored}");
    fs::remove_file(&filler).expect("removed");
    store.put_index(V1_TYPE, &index_of(&store, b"after", &[b"three"])).expect("stored");
    store.rebuild().expect("rebuilt");
    assert_eq!(digests(&store).len(), count + 1);
    drop(store);
}
