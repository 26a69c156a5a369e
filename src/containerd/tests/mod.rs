//! What a real containerd cannot be brought to do: lie about bytes, be cut off, come back. The rest is tried with a real one
//! (scripts/e2e).

mod fake;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use tonic::{Code, Status};

use super::labels::Labels;
use super::{Address, Client, ContainerdError, NewContent, Written};
use crate::units::{BlobOffset, BlobRange, Digest};
use fake::Fake;

fn range(start: u64, end: u64) -> BlobRange {
    BlobRange::new(BlobOffset::new(start), BlobOffset::new(end)).expect("ordered")
}

#[tokio::test]
async fn what_is_read_has_the_length_that_was_asked_for() {
    let fake = Fake::start();
    let client = fake.client().await;
    for (pieces, want) in [
        (&["01234", "56789"][..], Ok("0123456789")),
        (&["01234", "", "56789"][..], Ok("0123456789")),
        (&["01234"][..], Err("5 bytes are missing")),
        (&[][..], Err("10 bytes are missing")),
        (&["01234", "567890"][..], Err("more bytes than were asked for")),
    ] {
        fake.state().pieces = pieces.iter().map(|piece| piece.as_bytes().to_vec()).collect();
        let mut stream = client.read(Digest::of(b"x"), range(5, 15)).await.expect("opened");
        let mut all = Vec::new();
        let mut failed = None;
        while let Some(piece) = stream.next().await {
            match piece {
                Ok(piece) => all.extend_from_slice(&piece),
                Err(error) => failed = Some(error.to_string()),
            }
        }
        match (want, failed) {
            (Ok(want), None) => assert_eq!(all, want.as_bytes()),
            (Err(want), Some(error)) => assert!(error.contains(want), "{error}"),
            (want, got) => panic!("{want:?}: {got:?}"),
        }
        assert_eq!(fake.state().asked, (5, 10));
    }
    // To containerd a size of 0 would mean all.
    assert!(client.read(Digest::of(b"x"), range(5, 5)).await.expect("nothing").next().await.is_none());
}

#[tokio::test]
async fn documents_are_held_against_digest_and_limit() {
    let fake = Fake::start();
    let client = fake.client().await;
    fake.state().pieces = vec![b"evil".to_vec()];
    fake.state().size = 4;
    let lie = client.read_document(Digest::of(b"good"), 10).await.expect_err("another digest");
    assert!(matches!(lie, ContainerdError::WrongDigest { .. }), "{lie}");
    assert_eq!(client.read_document(Digest::of(b"evil"), 4).await.expect("as named"), &b"evil"[..]);
    let long = client.read_document(Digest::of(b"evil"), 3).await.expect_err("too long");
    assert!(matches!(long, ContainerdError::TooLong { size_bytes: 4, limit_bytes: 3, .. }), "{long}");
    fake.state().size = -1;
    assert!(matches!(client.info(Digest::of(b"evil")).await, Err(ContainerdError::Answer { .. })));
}

/// Writes 3 MiB and a bit, and says from where its source was asked.
async fn write(client: &Client, data: &Bytes) -> (Result<Written, ContainerdError>, u64) {
    let asked = AtomicU64::new(u64::MAX);
    let labels = Labels::from([("a".to_owned(), "b".to_owned())]);
    let new = NewContent { digest: Digest::of(data), size: BlobOffset::new(data.len() as u64), labels: &labels };
    let written = client.write(new, |from| {
        asked.store(from.get(), Ordering::Relaxed);
        let rest = data.slice(usize::try_from(from.get()).expect("small")..);
        async move { Ok(stream::iter([Ok(rest)]).boxed()) }
    });
    (written.await, asked.load(Ordering::Relaxed))
}

fn data() -> Bytes {
    (0..800_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>().into()
}

#[tokio::test]
async fn an_unfinished_write_is_gone_on_with_when_it_is_the_same_content() {
    let (fake, data) = (Fake::start(), data());
    let client = fake.client().await;
    for (leftover, from) in [
        (Bytes::new(), 0),
        (data.slice(..2_000_000), 2_000_000),
        // All is there: only the commit is left, and nobody asks the source.
        (data.clone(), u64::MAX),
        // Not its beginning: thrown away, and written anew.
        (Bytes::from_static(b"something else"), 0),
        ([&data[..], b"longer"].concat().into(), 0),
    ] {
        fake.state().ingest = leftover.to_vec();
        let (written, asked) = write(&client, &data).await;
        assert_eq!((written.expect("written"), asked), (Written::New, from));
        let mut state = fake.state();
        assert_eq!(state.committed.take(), Some(data.to_vec()));
        assert_eq!(state.labels.get("a").map(String::as_str), Some("b"));
    }
}

#[tokio::test]
async fn what_is_there_is_labelled_and_not_read() {
    let (fake, data) = (Fake::start(), data());
    fake.state().write_fails = vec![Status::already_exists("there")];
    let (written, asked) = write(&fake.client().await, &data).await;
    assert_eq!((written.expect("there"), asked), (Written::Present, u64::MAX));
    assert_eq!(fake.state().updated, ["labels.a"]);
}

#[tokio::test]
async fn another_writer_is_waited_for_and_other_trouble_is_not() {
    let (fake, data) = (Fake::start(), data());
    let client = fake.client().await;
    fake.state().write_fails = vec![Status::unavailable("ref locked"), Status::unavailable("ref locked")];
    assert_eq!(write(&client, &data).await.0.expect("written"), Written::New);
    fake.state().write_fails = vec![Status::resource_exhausted("no space left on device")];
    let full = write(&client, &data).await.0.expect_err("full");
    assert!(full.to_string().contains("no space left on device") && !full.is_transient(), "{full}");
    assert_eq!(fake.state().aborted, 1);
}

#[tokio::test]
async fn a_source_that_fails_or_lies_leaves_nothing() {
    let (fake, data) = (Fake::start(), data());
    let client = fake.client().await;
    let labels = Labels::new();
    let new = NewContent { digest: Digest::of(&data), size: BlobOffset::new(data.len() as u64), labels: &labels };
    for (bytes, want) in [
        (vec![Ok(data.slice(..2_000_000)), Err("the cable is cut".into())], "the cable is cut"),
        (vec![Ok(data.slice(..2_000_000))], "it ended after 2000000 of 3200000 bytes"),
        (vec![Ok(data.clone()), Ok(Bytes::from_static(b"x"))], "it is longer than 3200000 bytes"),
        (vec![Ok(vec![0; data.len()].into())], "unexpected commit digest"),
    ] {
        let bytes = std::sync::Mutex::new(Some(bytes));
        let open = |_| {
            let bytes = bytes.lock().expect("one thread").take().expect("asked once");
            async move { Ok(stream::iter(bytes).boxed()) }
        };
        let error = client.write(new, open).await.expect_err(want);
        assert!(error.to_string().contains(want), "{error}");
        let state = fake.state();
        assert!(state.ingest.is_empty() && state.committed.is_none(), "{want}");
    }
}

#[tokio::test]
async fn a_lease_is_named_in_what_is_written_and_goes_with_its_owner() {
    let fake = Fake::start();
    let client = fake.client().await;
    let lease = client.lease(super::LEASE_LIFE).await.expect("a lease");
    let id = fake.state().leases.first().cloned().expect("made");
    let expires = fake.state().expires.clone();
    assert!(expires.starts_with("20") && expires.ends_with('Z'), "{expires}");
    lease.client().write_bytes(&Bytes::from_static(b"x"), &Labels::new()).await.expect("written");
    let (header, namespace) = {
        let state = fake.state();
        (state.lease_header.clone(), state.namespace.clone())
    };
    assert_eq!((header, namespace), (id, "default".to_owned()));
    client.write_bytes(&Bytes::from_static(b"y"), &Labels::new()).await.expect("written");
    assert_eq!(fake.state().lease_header, "");
    // The way of a command that is interrupted.
    tokio::task::spawn_blocking(move || drop(lease)).await.expect("dropped");
    assert!(fake.state().leases.is_empty());
}

#[tokio::test]
async fn who_is_not_containerd_is_told_apart() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("sock");
    let address = Address::new(&path, "default").expect("an address");
    let none = Client::connect(&address).await.err().expect("no socket");
    assert!(matches!(none, ContainerdError::Socket { .. }) && none.to_string().contains("is it running?"), "{none}");
    for answer in [&b""[..], b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\0\0\0\0\0"] {
        let _ = std::fs::remove_file(&path);
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
        listener.set_nonblocking(true).expect("for tokio");
        let listener = tokio::net::UnixListener::from_std(listener).expect("for tokio");
        let answering = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                // The client may be gone already.
                let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await;
            }
        });
        let error = Client::connect(&address).await.err().expect("not containerd");
        answering.abort();
        assert!(matches!(error, ContainerdError::NotContainerd { .. }), "{error}");
    }
}

#[test]
fn statuses_become_errors() {
    let at = Address::new(Path::new("/s"), "default").expect("an address");
    let of = |code| ContainerdError::of(&at, "it", &Status::new(code, "why"));
    assert!(of(Code::NotFound).is_not_found());
    assert!(matches!(of(Code::AlreadyExists), ContainerdError::Exists { .. }));
    assert!(of(Code::Unavailable).is_transient());
    for code in [Code::Unknown, Code::Internal, Code::PermissionDenied, Code::FailedPrecondition] {
        let error = of(code);
        assert!(matches!(error, ContainerdError::Refused { .. }) && !error.is_transient(), "{error}");
        assert!(error.to_string().starts_with("containerd at /s, namespace default: it: why"), "{error}");
    }
}
