//! Documents made wrong on purpose, or odd.

use crate::spans::ztoc::builder::Builder;
use crate::spans::ztoc::*;
use crate::units::WINDOW_BYTES;

/// An entry as a document may claim it, right or wrong.
#[derive(Clone)]
struct RawEntry {
    name: Vec<u8>,
    kind: &'static str,
    offset: i64,
    size: i64,
    mode: i64,
    mod_time: &'static str,
    devmajor: i64,
}

fn file(name: &str, offset: i64, size: i64) -> RawEntry {
    let mod_time = "2023-01-02T03:04:05Z";
    RawEntry { name: name.into(), kind: "reg", offset, size, mode: 0o644, mod_time, devmajor: 0 }
}

/// A document as somebody may have made it, right or wrong.
#[derive(Clone)]
struct Forgery {
    version: &'static str,
    blob_size: i64,
    layer_size: i64,
    entries: Vec<RawEntry>,
    algorithm: i8,
    max_span_id: i32,
    digests: Vec<String>,
    zinfo: Vec<u8>,
}

/// Where checkpoints of [`Forgery::sound`] are: blob, layer, bits.
const SOUND: [(i64, i64, u8); 3] = [(10, 0, 0), (5000, 100_000, 3), (9000, 200_000, 0)];

fn gzip_zinfo(have: i32, span_size: i64, checkpoints: &[(i64, i64, u8)]) -> Vec<u8> {
    let mut zinfo = have.to_le_bytes().to_vec();
    zinfo.extend(span_size.to_le_bytes());
    for (i, (blob, layer, bits)) in checkpoints.iter().enumerate() {
        zinfo.extend(blob.to_le_bytes());
        zinfo.extend(layer.to_le_bytes());
        zinfo.push(*bits);
        zinfo.resize(zinfo.len() + WINDOW_BYTES, u8::try_from(i).expect("few"));
    }
    zinfo
}

fn zstd_zinfo(version: i32, have: i32, span_size: i64, checkpoints: &[(i64, i64)]) -> Vec<u8> {
    let mut zinfo = [version.to_le_bytes(), have.to_le_bytes()].concat();
    zinfo.extend(span_size.to_le_bytes());
    zinfo.extend(checkpoints.iter().flat_map(|(blob, layer)| [blob.to_le_bytes(), layer.to_le_bytes()].concat()));
    zinfo
}

fn tar_zinfo(version: i32, span_size: i64, size: i64) -> Vec<u8> {
    let mut builder = Builder::new();
    builder.start_table(3);
    builder.add_i32(0, version);
    builder.add_i64(1, span_size);
    builder.add_i64(2, size);
    let root = builder.end_table();
    builder.finish(root).expect("small").head
}

impl Forgery {
    /// A document with nothing wrong in it: three spans, two files.
    fn sound() -> Self {
        Self {
            version: "0.9",
            blob_size: 10_000,
            layer_size: 250_000,
            entries: vec![file("a", 512, 1000), file("b", 2048, 200_000)],
            algorithm: GZIP,
            max_span_id: 2,
            digests: ["0", "1", "2"].map(|text| Digest::of(text.as_bytes()).to_string()).to_vec(),
            zinfo: gzip_zinfo(3, 4096, &SOUND),
        }
    }

    fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut forgery = Self::sound();
        change(&mut forgery);
        forgery
    }

    fn bytes(&self) -> Vec<u8> {
        let mut builder = Builder::new();
        let version = builder.string(self.version.as_bytes());
        let tool = builder.string(b"test");
        let entries: Vec<_> = self
            .entries
            .iter()
            .map(|entry| {
                let name = builder.string(&entry.name);
                let kind = builder.string(entry.kind.as_bytes());
                let mod_time = builder.string(entry.mod_time.as_bytes());
                builder.start_table(14);
                builder.add_offset(0, name);
                builder.add_offset(1, kind);
                builder.add_i64(2, entry.offset);
                builder.add_i64(3, entry.size);
                builder.add_i64(5, entry.mode);
                builder.add_offset(10, mod_time);
                builder.add_i64(11, entry.devmajor);
                builder.end_table()
            })
            .collect();
        let metadata = builder.vector(&entries);
        builder.start_table(1);
        builder.add_offset(0, metadata);
        let toc = builder.end_table();
        let digests: Vec<_> = self.digests.iter().map(|text| builder.string(text.as_bytes())).collect();
        let digests = builder.vector(&digests);
        let zinfo = builder.bytes(&self.zinfo);
        builder.start_table(4);
        builder.add_i8(0, self.algorithm, GZIP);
        builder.add_i32(1, self.max_span_id);
        builder.add_offset(2, digests);
        builder.add_offset(3, zinfo);
        let info = builder.end_table();
        builder.start_table(6);
        builder.add_offset(0, version);
        builder.add_offset(1, tool);
        builder.add_i64(2, self.blob_size);
        builder.add_i64(3, self.layer_size);
        builder.add_offset(4, toc);
        builder.add_offset(5, info);
        let root = builder.end_table();
        builder.finish(root).expect("small").head
    }

    /// What reading all of it says.
    fn verdict(&self) -> Result<SpanTable, ZtocError> {
        let bytes = self.bytes();
        let ztoc = Ztoc::parse(&bytes)?;
        ztoc.entries().try_for_each(|entry| entry.map(drop))?;
        Ok(ztoc.spans().clone())
    }
}

#[test]
fn a_sound_document_is_read() {
    let spans = Forgery::sound().verdict().expect("sound");
    let found: Vec<_> = spans
        .iter()
        .map(|(_, s)| (s.blob.start().get(), s.blob.end().get(), s.layer.start().get(), s.layer.end().get(), s.bits))
        .collect();
    // Neighbours share the byte that holds the last bits of one span and the first of the next.
    assert_eq!(
        found,
        [(10, 5000, 0, 100_000, 0), (4999, 9000, 100_000, 200_000, 3), (9000, 10_000, 200_000, 250_000, 0)]
    );
    assert_eq!(spans.get(SpanId(0)).and_then(|s| s.window_at), None);
}

#[test]
fn bad_documents_are_refused_by_name() {
    fn zinfo(have: i32, checkpoints: &[(i64, i64, u8)]) -> Forgery {
        Forgery::with(|f| f.zinfo = gzip_zinfo(have, 4096, checkpoints))
    }
    fn tar(version: i32, span_size: i64, size: i64) -> Forgery {
        Forgery::with(|f| (f.algorithm, f.zinfo) = (UNCOMPRESSED, tar_zinfo(version, span_size, size)))
    }
    fn entry(change: impl FnOnce(&mut RawEntry)) -> Forgery {
        Forgery::with(|f| change(&mut f.entries[1]))
    }
    let [first, second, third] = SOUND;
    let digest = Forgery::sound().digests[0].clone();
    for (forgery, want) in [
        (Forgery::with(|f| f.version = "1.0"), "version \"1.0\" is not supported"),
        (Forgery::with(|f| f.blob_size = -1), "compressed archive size -1"),
        (Forgery::with(|f| f.layer_size = i64::MIN), "uncompressed archive size -9223372036854775808"),
        (Forgery::with(|f| f.algorithm = 3), "unknown compression 3"),
        (Forgery::with(|f| f.max_span_id = 3), "but 3 as its last span"),
        (Forgery::with(|f| f.max_span_id = -1), "but -1 as its last span"),
        (Forgery::with(|f| f.max_span_id = i32::MAX), "but 2147483647 as its last span"),
        (Forgery::with(|f| drop(f.digests.pop())), "with 2 span digests"),
        (Forgery::with(|f| f.digests[1] = digest[..40].to_owned()), "bad digest for span 1"),
        (Forgery::with(|f| f.digests[2] = "sha512:00".to_owned()), "bad digest for span 2"),
        (Forgery::with(|f| f.zinfo.clear()), "0 bytes are too few"),
        (Forgery::with(|f| f.zinfo.truncate(11)), "11 bytes are too few"),
        (Forgery::with(|f| f.zinfo.truncate(f.zinfo.len() - 1)), "do not hold 3 checkpoints"),
        (Forgery::with(|f| f.zinfo.push(0)), "do not hold 3 checkpoints"),
        (zinfo(i32::MAX, &SOUND), "do not hold 2147483647 checkpoints"),
        (zinfo(-1, &SOUND), "do not hold -1 checkpoints"),
        (zinfo(0, &[]), "do not hold 0 checkpoints"),
        (Forgery::with(|f| f.zinfo = gzip_zinfo(3, -1, &SOUND)), "impossible span size -1"),
        (zinfo(3, &[first, second, (-1, 200_000, 0)]), "checkpoint 2 at the offset -1"),
        (zinfo(3, &[first, second, (9000, -1, 0)]), "checkpoint 2 at the offset -1"),
        (zinfo(3, &[first, second, (9000, 200_000, 8)]), "span 2: impossible bit offset 8"),
        (zinfo(3, &[(11, 0, 1), second, third]), "span 0: impossible bit offset 1"),
        (zinfo(3, &[(9, 0, 0), second, third]), "begins at blob byte 9"),
        (zinfo(3, &[(0, 0, 0), second, third]), "begins at blob byte 0"),
        (zinfo(3, &[(10, 1, 0), second, third]), "layer byte 1"),
        (zinfo(3, &[first, third, second]), "checkpoint 1 (blob byte 9000, layer byte 200000) lies beyond"),
        (zinfo(3, &[first, second, second]), "span 1 (blob [4999, 5000), layer [100000, 100000)) does not follow"),
        (
            zinfo(3, &[first, second, (10_001, 200_000, 0)]),
            "checkpoint 2 (blob byte 10001, layer byte 200000) lies beyond",
        ),
        (zinfo(3, &[first, second, (10_000, 200_000, 0)]), "span 2 (blob [10000, 10000), layer [200000, 250000))"),
        (
            zinfo(3, &[first, second, (9000, i64::MAX, 0)]),
            "4001 blob bytes cannot hold 9223372036854675807 layer bytes",
        ),
        (Forgery::with(|f| f.layer_size = 1 << 40), "1000 blob bytes cannot hold 1099511427776 layer bytes"),
        (tar(3, 4096, 10_000), "unknown version 3"),
        (tar(2, 0, 10_000), "impossible span size 0"),
        (tar(2, -1, 10_000), "impossible span size -1"),
        (tar(2, 4096, -1), "the offset -1"),
        (tar(2, 4096, 9_999), "plain tar of 10000 bytes, with checkpoints for 9999"),
        (tar(2, 1, 10_000), "3 span digests and 10000 checkpoints"),
        (tar(2, i64::MAX, 10_000), "3 span digests and 1 checkpoints"),
        (tar(2, 4096, 10_000), "span 2: 1808 blob bytes cannot hold 241808 layer bytes"),
        (entry(|e| e.kind = "socket"), "unknown type \"socket\""),
        (entry(|e| e.offset = -512), "impossible data offset -512"),
        (entry(|e| e.size = -1), "impossible size -1"),
        (entry(|e| e.size = 250_000), "250000 bytes at layer byte 2048 reach beyond the layer's 250000 bytes"),
        (entry(|e| (e.offset, e.size) = (i64::MAX - 511, i64::MAX)), "reach beyond the layer"),
        (entry(|e| (e.kind, e.offset) = ("dir", 250_001)), "reach beyond the layer"),
        (entry(|e| e.offset = 2049), "not a multiple of 512"),
        (entry(|e| e.mode = -1), "impossible mode -1"),
        (entry(|e| e.mode = 1 << 32), "impossible mode 4294967296"),
        (entry(|e| e.devmajor = -1), "impossible device major number -1"),
        (entry(|e| e.mod_time = "tomorrow"), "\"tomorrow\" is no RFC 3339 time"),
        (entry(|e| e.offset = 1024), "entries \"a\" and \"b\" share layer bytes [1024, 1512)"),
        (entry(|e| (e.offset, e.size) = (0, 513)), "entries \"b\" and \"a\" share layer bytes [512, 513)"),
    ] {
        let error = forgery.verdict().expect_err(want);
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        assert!(text.contains(want), "{text:?} does not say {want:?}");
    }
}

#[test]
fn odd_but_right_documents_are_read() {
    for (what, forgery) in [
        ("entries out of order", Forgery::with(|f| f.entries.reverse())),
        ("no entries", Forgery::with(|f| f.entries.clear())),
        ("two empty files in one place", Forgery::with(|f| f.entries = vec![file("a", 513, 0), file("b", 513, 0)])),
        ("an empty file at the end", Forgery::with(|f| f.entries[1] = file("b", 250_000, 0))),
        ("a link with a size", Forgery::with(|f| (f.entries[1].kind, f.entries[1].offset) = ("hardlink", 1024))),
        ("a span behind the layer's end", Forgery::with(|f| (f.layer_size, f.entries[1].size) = (199_000, 1000))),
        (
            "an old zTOC of a layer of many members: one span holds all",
            Forgery::with(|f| {
                f.zinfo = gzip_zinfo(1, 4096, &SOUND[..1]);
                f.digests.truncate(1);
                f.max_span_id = 0;
            }),
        ),
        (
            "a plain tar with bytes behind its end",
            Forgery::with(|f| {
                (f.algorithm, f.zinfo) = (UNCOMPRESSED, tar_zinfo(2, 100_000, 260_000));
                f.blob_size = 260_000;
            }),
        ),
    ] {
        forgery.verdict().unwrap_or_else(|e| panic!("{what}: {e}"));
    }
}

#[test]
fn version_1_of_zinfo_leaves_the_first_checkpoint_out() {
    let forgery = Forgery::with(|f| f.zinfo = gzip_zinfo(3, 4096, &SOUND[1..]));
    let bytes = forgery.bytes();
    let ztoc = Ztoc::parse(&bytes).expect("version 1");
    assert!(ztoc.first_span_is_guessed());
    let first = ztoc.checkpoint(SpanId(0)).expect("synthesized");
    assert_eq!((first.blob.get(), first.layer.get(), first.bits), (10, 0, 0));
    assert!(first.window.is_some_and(|window| window.iter().all(|&byte| byte == 0)));

    let spans = ztoc.spans().clone();
    assert_eq!(spans.get(SpanId(0)).and_then(|s| s.window_at), None);
    let at = spans.get(SpanId(1)).and_then(|s| s.window_at).and_then(|at| usize::try_from(at).ok()).expect("window");
    assert!(bytes[at..at + WINDOW_BYTES].iter().all(|&byte| byte == 0));
    assert_eq!(bytes[at + WINDOW_BYTES..][..8], 9000_i64.to_le_bytes());

    let moved = spans.clone().with_first_span_at(BlobOffset::new(42)).expect("a longer header");
    assert_eq!(moved.get(SpanId(0)).map(|s| (s.blob.start().get(), s.blob.end().get())), Some((42, 5000)));
    for impossible in [9, 5000, 6000] {
        assert!(spans.clone().with_first_span_at(BlobOffset::new(impossible)).is_err(), "{impossible}");
    }
}

#[test]
fn a_small_document_cannot_claim_a_large_table() {
    // A vector's length that leads out of the document.
    let bytes = Forgery::with(|f| f.entries = vec![file("a", 512, 0); 77]).bytes();
    let count = bytes.windows(4).position(|four| four == 77_u32.to_le_bytes()).expect("77 entries");
    let mut claims = bytes.clone();
    claims[count..count + 4].copy_from_slice(&(1_u32 << 30).to_le_bytes());
    assert!(matches!(Ztoc::parse(&claims), Err(ZtocError::Damaged { .. })));

    // Many entries that are one and the same table, with one long name.
    let mut builder = Builder::new();
    let version = builder.string(b"0.9");
    let long = builder.string(&[b'n'; 10_000]);
    let kind = builder.string(b"dir");
    builder.start_table(14);
    builder.add_offset(0, long);
    builder.add_offset(1, kind);
    let entry = builder.end_table();
    let metadata = builder.vector(&[entry; 10_000]);
    builder.start_table(1);
    builder.add_offset(0, metadata);
    let toc = builder.end_table();
    let digest = builder.string(Digest::of(b"").to_string().as_bytes());
    let digests = builder.vector(&[digest]);
    let zinfo = builder.bytes(&gzip_zinfo(1, 4096, &SOUND[..1]));
    builder.start_table(4);
    builder.add_offset(2, digests);
    builder.add_offset(3, zinfo);
    let info = builder.end_table();
    builder.start_table(6);
    builder.add_offset(0, version);
    builder.add_i64(2, 100);
    builder.add_offset(4, toc);
    builder.add_offset(5, info);
    let root = builder.end_table();
    let bytes = builder.finish(root).expect("small").head;
    let ztoc = Ztoc::parse(&bytes).expect("spans are sound");
    assert_eq!(ztoc.entry_count(), 10_000);
    let last = ztoc.entries().last().expect("entries");
    assert!(matches!(last, Err(ZtocError::Inflated { .. })), "{last:?}");
}

#[test]
fn info_has_the_keys_of_soci() {
    let bytes = Forgery::with(|f| f.entries.reverse()).bytes();
    let info = Ztoc::parse(&bytes).and_then(|ztoc| ztoc.info()).expect("sound");
    let json = serde_json::to_value(&info).expect("JSON");
    let files = serde_json::json!([
        {"filename": "a", "offset": 512, "size": 1000, "type": "reg", "start_span": 0, "end_span": 0},
        {"filename": "b", "offset": 2048, "size": 200_000, "type": "reg", "start_span": 0, "end_span": 2},
    ]);
    let want = serde_json::json!({
        "version": "0.9", "build_tool": "test", "size": bytes.len(), "span_size": 4096, "num_spans": 3,
        "num_files": 2, "num_multi_span_files": 1, "files": files,
    });
    assert_eq!(json, want);
}

/// Frames of a zstd layer: where they begin in blob and layer.
const FRAMES: [(i64, i64); 3] = [(0, 0), (5000, 100_000), (9000, 200_000)];

fn of_zstd(zinfo: Vec<u8>) -> Forgery {
    Forgery::with(|f| (f.algorithm, f.zinfo) = (ZSTD, zinfo))
}

#[test]
fn zstd_checkpoints_are_frames_without_windows() {
    let bytes = of_zstd(zstd_zinfo(1, 3, 4096, &FRAMES)).bytes();
    let ztoc = Ztoc::parse(&bytes).expect("sound");
    assert_eq!((ztoc.spans().compression(), ztoc.span_size()), (Compression::Zstd, 4096));
    assert!(!ztoc.first_span_is_guessed());
    for (i, (id, span)) in ztoc.spans().iter().enumerate() {
        let checkpoint = ztoc.checkpoint(id).expect("one for each span");
        assert_eq!((span.window_at, checkpoint.window.is_none(), span.bits), (None, true, 0));
        let at = (span.blob.start().get() as i64, span.layer.start().get() as i64);
        assert_eq!((at, checkpoint.blob), (FRAMES[i], span.blob.start()));
    }
    assert!(ztoc.checkpoint(SpanId(3)).is_none());
    assert_eq!(super::rewrite(&bytes).and_then(|again| super::rewrite(&again)), super::rewrite(&bytes));
    assert_eq!(ztoc.info().expect("sound").compression, Some(Compression::Zstd));
    // The last span may hold no layer byte: frames that can be skipped, and empty ones.
    let empty_end = Forgery { layer_size: 200_000, ..of_zstd(zstd_zinfo(1, 3, 0, &FRAMES)) };
    let empty_end = Forgery { entries: Vec::new(), ..empty_end };
    empty_end.verdict().expect("sound");
}

#[test]
fn wrong_zstd_checkpoints_are_refused() {
    let sound = zstd_zinfo(1, 3, 4096, &FRAMES);
    for (what, zinfo, want) in [
        ("no version", Vec::new(), "0 bytes are too few"),
        ("half a header", sound[..11].to_vec(), "11 bytes are too few"),
        ("a later version", zstd_zinfo(2, 3, 4096, &FRAMES), "unknown version 2 of the checkpoints of zstd layers"),
        ("none", zstd_zinfo(1, 0, 4096, &[]), "do not hold 0 checkpoints"),
        ("a negative number", zstd_zinfo(1, -1, 4096, &FRAMES), "do not hold -1 checkpoints"),
        ("too many", zstd_zinfo(1, i32::MAX, 4096, &FRAMES), "do not hold 2147483647 checkpoints"),
        ("cut off", sound[..sound.len() - 1].to_vec(), "do not hold 3 checkpoints"),
        ("a negative span size", zstd_zinfo(1, 3, -1, &FRAMES), "impossible span size -1"),
        ("a negative offset", zstd_zinfo(1, 3, 1, &[(0, 0), (-5, 9), (9, 10)]), "checkpoint 1 at the offset -5"),
        ("a later start", zstd_zinfo(1, 3, 1, &[(1, 0), (5, 9), (9, 10)]), "the first span begins at blob byte 1"),
        ("a later layer", zstd_zinfo(1, 3, 1, &[(0, 1), (5, 9), (9, 10)]), "the first span begins at"),
        ("backwards", zstd_zinfo(1, 3, 1, &[(0, 0), (9, 9), (5, 10)]), "checkpoint 1"),
        ("an empty span", zstd_zinfo(1, 3, 1, &[(0, 0), (9, 9), (9, 10)]), "does not follow"),
        ("no layer bytes", zstd_zinfo(1, 3, 1, &[(0, 0), (9, 9), (19, 9)]), "does not follow"),
        ("beyond the blob", zstd_zinfo(1, 3, 1, &[(0, 0), (9, 9), (10_001, 19)]), "checkpoint 2"),
        ("a bomb", zstd_zinfo(1, 3, 1, &[(0, 0), (4, 140_000), (19, 200_000)]), "4 blob bytes cannot hold 140000"),
        ("another's", gzip_zinfo(3, 4096, &SOUND), "unknown version 3"),
    ] {
        let error = of_zstd(zinfo).verdict().expect_err(what);
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        assert!(text.contains(want), "{what}: {text:?} does not say {want:?}");
    }
    let gzip = Forgery::with(|f| f.zinfo = sound.clone()).verdict().expect_err("a gzip layer's are others");
    assert!(matches!(gzip, ZtocError::Zinfo(_)), "{gzip}");
}
