//! True zTOCs are proven; each lie is found and named.

use std::borrow::Cow;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::*;
use crate::soci::build::{BuildOptions, ZtocBuilder};
use crate::spans::ztoc::{ZtocParts, write};
use crate::spans::{Checkpoint, EntryKind, ModTime, TocEntry};
use crate::units::{LayerRange, WINDOW_BYTES};

fn folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    [root.join("tests/corpus"), root.join("../shared/corpus/layers")].into_iter().filter(|f| f.is_dir()).collect()
}

fn corpus(name: &str) -> Vec<u8> {
    let path = folders().into_iter().map(|folder| folder.join(name)).find(|path| path.exists());
    std::fs::read(path.expect("the corpus has it")).expect("readable")
}

fn inflated(blob: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    if blob.starts_with(&[0x1f, 0x8b]) {
        flate2::read::MultiGzDecoder::new(blob).read_to_end(&mut tar).expect("sound gzip");
    } else {
        tar.extend_from_slice(blob);
    }
    tar
}

fn truth(blob: &[u8]) -> Expected {
    let blob_size = BlobOffset::new(u64_from_usize(blob.len()));
    Expected { digest: Digest::of(blob), blob_size, diff_id: Some(Digest::of(&inflated(blob))) }
}

fn checked(blob: &[u8], ztoc: &[u8], expected: Expected, piece: usize) -> Checked {
    let ztoc = Ztoc::parse(ztoc).expect("a lie that a reader cannot see");
    let mut verifier = Verifier::new(&ztoc, expected);
    blob.chunks(piece).for_each(|piece| verifier.push(piece));
    verifier.finish()
}

fn lines(checked: &Checked) -> Vec<String> {
    checked.findings.told.iter().map(ToString::to_string).collect()
}

#[test]
fn every_ztoc_of_the_corpus_is_proven_whatever_the_pieces() {
    let files = folders().into_iter().flat_map(|folder| std::fs::read_dir(folder).expect("readable"));
    let mut ztocs: Vec<PathBuf> = files.map(|file| file.expect("readable").path()).collect();
    ztocs.retain(|path| path.extension().is_some_and(|e| e == "ztoc"));
    assert!(ztocs.len() >= 10, "the corpus is part of the project");
    for path in ztocs {
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        let layer = name.trim_end_matches(".ztoc").trim_end_matches(".span-256k").trim_end_matches(".span-1m");
        let (blob, ztoc) = (corpus(layer), std::fs::read(&path).expect("readable"));
        let expected = truth(&blob);
        let small = if blob.len() < 1 << 20 { 7 } else { 1 << 16 };
        for piece in [small, usize::MAX] {
            let checked = checked(&blob, &ztoc, expected, piece);
            assert!(checked.findings.is_empty() && checked.unchecked.is_none(), "{name}: {:?}", lines(&checked));
            assert_eq!(checked.blob_digest, expected.digest, "{name}");
        }
    }
}

/// A zTOC in parts, to be changed.
struct Forged {
    entries: Vec<TocEntry<'static>>,
    checkpoints: Vec<Checkpoint>,
    digests: Vec<Digest>,
    blob_size: u64,
    layer_size: u64,
}

impl Forged {
    fn window(&mut self, checkpoint: usize) -> &mut [u8] {
        self.checkpoints[checkpoint].window.as_deref_mut().expect("gzip")
    }

    fn of(ztoc: &[u8]) -> Self {
        let ztoc = Ztoc::parse(ztoc).expect("sound");
        Self {
            entries: ztoc.entries().map(|entry| entry.expect("sound").into_owned()).collect(),
            checkpoints: ztoc.spans().iter().map(|(id, _)| ztoc.checkpoint(id).expect("gzip")).collect(),
            digests: ztoc.spans().iter().map(|(_, span)| span.digest).collect(),
            blob_size: ztoc.blob_size().get(),
            layer_size: ztoc.layer_size().get(),
        }
    }

    fn written(&self) -> Vec<u8> {
        self.written_as(Compression::Gzip)
    }

    fn written_as(&self, compression: Compression) -> Vec<u8> {
        let parts = ZtocParts {
            build_tool: "AWS SOCI CLI v0.1",
            compressed_size: BlobOffset::new(self.blob_size),
            uncompressed_size: LayerOffset::new(self.layer_size),
            entries: &self.entries,
            compression,
            span_size: 1,
            span_digests: &self.digests,
        };
        write(&parts, &self.checkpoints).expect("written")
    }

    fn first(&mut self, kind: EntryKind) -> &mut TocEntry<'static> {
        let with_data = |entry: &&mut TocEntry<'_>| kind != EntryKind::Reg || entry.data.len_bytes() > 0;
        self.entries.iter_mut().filter(|entry| entry.kind == kind).find(with_data).expect("the layer has one")
    }
}

fn moved(range: LayerRange, by: i64, shorter: u64) -> LayerRange {
    let start = range.start().get().checked_add_signed(by).expect("small");
    LayerRange::from_len(LayerOffset::new(start), range.len_bytes() - shorter).expect("small")
}

type Lie = (&'static str, fn(&mut Forged), &'static [&'static str]);

#[test]
fn each_lie_about_an_entry_is_found_and_named() {
    use EntryKind::{Char, Dir, Hardlink, Reg, Symlink};
    let lies: [Lie; 20] = [
        ("name", |f| f.first(Reg).name = Cow::Borrowed(b"other\xff"), &[r"name: expected", r"other\\xff"]),
        ("type", |f| f.first(Dir).kind = EntryKind::Fifo, &["type: expected dir, found fifo"]),
        ("offset", |f| f.first(Reg).data = moved(f.first(Reg).data, -512, 1), &["offset: expected", "size: expected"]),
        ("size", |f| f.first(Reg).data = moved(f.first(Reg).data, 0, 1), &["size: expected"]),
        ("symlink", |f| f.first(Symlink).linkname = Cow::Borrowed(b"/etc"), &["link target: expected", "found /etc"]),
        ("hardlink", |f| f.first(Hardlink).linkname = Cow::Borrowed(b"x"), &["link target: expected", "found x"]),
        ("mode", |f| f.first(Reg).mode ^= 0o4000, &["mode: expected 0o"]),
        ("uid", |f| f.first(Dir).uid += 1, &["uid: expected"]),
        ("gid", |f| f.first(Dir).gid += 1, &["gid: expected"]),
        ("uname", |f| f.first(Reg).uname = Cow::Borrowed(b"me"), &["uname: expected", "found me"]),
        ("gname", |f| f.first(Reg).gname = Cow::Borrowed(b"we"), &["gname: expected", "found we"]),
        ("mtime", |f| f.first(Reg).mtime = ModTime::GO_ZERO, &["mtime: expected", "found 0001-01-01T00:00:00Z"]),
        ("devmajor", |f| f.first(Char).devmajor += 1, &["devmajor: expected"]),
        ("devminor", |f| f.first(Char).devminor += 1, &["devminor: expected"]),
        (
            "another xattr",
            |f| f.first(Dir).pax = vec![(Cow::Borrowed(b"SCHILY.xattr.user.z"), Cow::Borrowed(b"1"))],
            &["PAX record SCHILY.xattr.user.z: expected none, found \"1\""],
        ),
        (
            "an xattr's value",
            |f| {
                let has = |entry: &&mut TocEntry<'_>| entry.xattrs().next().is_some();
                let entry = f.entries.iter_mut().find(has).expect("the layer has some");
                let is_xattr = |(key, _): &&mut (Cow<'_, [u8]>, Cow<'_, [u8]>)| key.starts_with(b"SCHILY.xattr.");
                entry.pax.iter_mut().find(is_xattr).expect("one").1 = Cow::Borrowed(b"lie");
            },
            &["PAX record SCHILY.xattr.", "found \"lie\""],
        ),
        (
            "a missing record",
            |f| f.entries.iter_mut().find(|e| !e.pax.is_empty()).expect("some").pax.clear(),
            &["found none"],
        ),
        (
            "a missing entry",
            |f| drop(f.entries.remove(3)),
            &["entry 3 ", "entry: expected one, as in the tar, found none"],
        ),
        (
            "one too many",
            |f| {
                let mut extra = f.first(Dir).clone();
                extra.name = Cow::Borrowed(b"extra/");
                extra.data = LayerRange::from_len(LayerOffset::new(f.layer_size), 0).expect("small");
                f.entries.push(extra);
            },
            &["\"extra/\": entry: expected none in the tar, found one"],
        ),
        ("order", |f| f.entries.swap(2, 5), &["order: expected entry"]),
    ];
    let (blob, ztoc) = (corpus("edge-pax.tar.gz"), corpus("edge-pax.tar.gz.ztoc"));
    for (lie, tell, words) in lies {
        let mut forged = Forged::of(&ztoc);
        let honest = checked(&blob, &forged.written(), truth(&blob), 1 << 16);
        assert!(honest.findings.is_empty(), "before {lie}: {:?}", lines(&honest));
        tell(&mut forged);
        let found = checked(&blob, &forged.written(), truth(&blob), 1 << 16);
        let lines = lines(&found);
        assert!(lines.iter().all(|line| line.starts_with("entry ")), "{lie}: {lines:?}");
        for word in words {
            assert!(lines.iter().any(|line| line.contains(word)), "{lie}: {word} in {lines:?}");
        }
    }
}

#[test]
fn each_lie_about_spans_and_checkpoints_is_found_and_named() {
    let lies: [Lie; 8] = [
        ("digest", |f| f.digests[1] = Digest::of(b""), &["span 1: digest: expected"]),
        ("the last digest", |f| *f.digests.last_mut().expect("some") = Digest::of(b""), &["digest: expected"]),
        ("oldest window byte", |f| f.window(1)[0] ^= 1, &["checkpoint 1: window: expected", "at byte 0 of"]),
        (
            "newest window byte",
            |f| f.window(1)[WINDOW_BYTES - 1] ^= 1,
            &["checkpoint 1: window: expected", "at byte 32767 of"],
        ),
        (
            "bits",
            |f| {
                let checkpoint = f.checkpoints.iter_mut().find(|c| c.bits > 1).expect("some");
                checkpoint.bits -= 1;
            },
            &[": bits: expected"],
        ),
        (
            "blob offset",
            |f| f.checkpoints[1].blob = BlobOffset::new(f.checkpoints[1].blob.get() + 1),
            &["checkpoint 1: blob offset: expected"],
        ),
        (
            "layer offset",
            |f| f.checkpoints[1].layer = LayerOffset::new(f.checkpoints[1].layer.get() + 1),
            &["checkpoint 1: layer offset: expected a place where a deflate block begins"],
        ),
        ("size", |f| f.layer_size -= 512, &["zTOC: uncompressed size: expected"]),
    ];
    let (blob, ztoc) = (corpus("mixed-zlib6.tar.gz"), corpus("mixed-zlib6.tar.gz.span-256k.ztoc"));
    for (lie, tell, words) in lies {
        let mut forged = Forged::of(&ztoc);
        assert!(forged.checkpoints.len() > 2, "spans to lie about");
        tell(&mut forged);
        let lines = lines(&checked(&blob, &forged.written(), truth(&blob), 1 << 16));
        for word in words {
            assert!(lines.iter().any(|line| line.contains(word)), "{lie}: {word} in {lines:?}");
        }
    }
}

#[test]
fn checkpoints_may_be_others_than_ours_and_the_first_may_be_left_out() {
    let blob = corpus("mixed-zlib6.tar.gz");
    // Every second checkpoint, as a builder with another rule may have chosen.
    let mut forged = Forged::of(&corpus("mixed-zlib6.tar.gz.span-256k.ztoc"));
    let mut number = 0;
    forged.checkpoints.retain(|_| {
        number += 1;
        number % 2 == 1
    });
    let starts =
        forged.checkpoints.iter().map(|c| usize::try_from(c.blob.get()).expect("small") - usize::from(c.bits != 0));
    let ends = forged.checkpoints.iter().skip(1).map(|c| usize::try_from(c.blob.get()).expect("small"));
    forged.digests = starts.zip(ends.chain([blob.len()])).map(|(start, end)| Digest::of(&blob[start..end])).collect();
    let found = checked(&blob, &forged.written(), truth(&blob), 1 << 16);
    assert!(found.findings.is_empty(), "{:?}", lines(&found));

    // Version 1 of zinfo: the record of checkpoint 0 is not there.
    let parts = forged.written();
    let record = crate::spans::ztoc::checkpoint_record(Compression::Gzip, &forged.checkpoints[0]).expect("small");
    let at = parts.windows(record.len()).position(|bytes| bytes == record).expect("there");
    let zinfo_bytes = 12 + forged.checkpoints.len() * record.len();
    let mut older = parts.clone();
    let length = u32::try_from(zinfo_bytes - record.len()).expect("small").to_le_bytes();
    // The vector gets shorter at its end; what lies behind stays where it is.
    older[at - 16..at - 12].copy_from_slice(&length);
    older.copy_within(at + record.len()..at - 12 + zinfo_bytes, at);
    let ztoc = Ztoc::parse(&older).expect("version 1");
    assert!(ztoc.first_span_is_guessed());
    let found = checked(&blob, &older, truth(&blob), 1 << 16);
    assert!(found.findings.is_empty(), "{:?}", lines(&found));
}

#[test]
fn lies_about_the_layer_are_found_and_named() {
    let (blob, ztoc) = (corpus("mixed-zlib6.tar.gz"), corpus("mixed-zlib6.tar.gz.span-256k.ztoc"));
    let right = truth(&blob);
    let wrong_diff_id = Expected { diff_id: Some(Digest::of(b"x")), ..right };
    let lines_of = |blob: &[u8], expected| lines(&checked(blob, &ztoc, expected, 1 << 16));
    let found = lines_of(&blob, wrong_diff_id);
    assert!(found.len() == 1 && found[0].starts_with("layer: diffID: expected sha256:"), "{found:?}");

    for cut in [blob.len() - 1, blob.len() / 2, 5, 0] {
        let found = lines_of(&blob[..cut], right);
        for word in ["layer: blob size: expected", "layer: digest: expected"] {
            assert!(found.iter().any(|line| line.starts_with(word)), "cut at {cut}: {found:?}");
        }
    }
    // The manifest names the cut layer itself.
    let cut = &blob[..blob.len() - 20];
    let of_cut = Expected { digest: Digest::of(cut), blob_size: BlobOffset::new(u64_from_usize(cut.len())), ..right };
    let found = lines_of(cut, of_cut);
    for word in ["zTOC: blob size: expected", "layer: gzip data: expected", "blob range: expected at most"] {
        assert!(found.iter().any(|line| line.contains(word)), "{found:?}");
    }
    let mut changed = blob.clone();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    let found = lines_of(&changed, right);
    assert!(found.iter().any(|line| line.starts_with("layer: digest")), "{found:?}");
    assert!(found.iter().any(|line| line.starts_with("span ")), "{found:?}");

    let other = corpus("edge-gnu.tar.gz");
    let checked = checked(&other, &ztoc, truth(&other), 1 << 16);
    assert!(checked.findings.total > 20 && checked.findings.told.len() == 20, "{}", checked.findings.total);
    let tar = inflated(&blob);
    assert_eq!(lines_of(&tar, truth(&tar))[1], "zTOC: compression: expected uncompressed, found gzip");
}

#[test]
fn plain_tars_are_proven() {
    let tar = inflated(&corpus("edge-ustar.tar.gz"));
    let options = BuildOptions { span_size_bytes: 1000, ..BuildOptions::default() };
    let mut builder = ZtocBuilder::new(options, Compression::Uncompressed).expect("a builder");
    builder.push(&tar, &mut |_| Ok(())).expect("a tar");
    let ztoc = builder.finish(&mut |_| Ok(())).expect("built").ztoc;
    for piece in [1, 999, 1000, usize::MAX] {
        let found = checked(&tar, &ztoc, truth(&tar), piece);
        assert!(found.findings.is_empty(), "{:?}", lines(&found));
    }
    let mut changed = tar.clone();
    changed[0] ^= 1;
    let found = lines(&checked(&changed, &ztoc, truth(&tar), 1 << 16));
    assert!(found.iter().any(|line| line.starts_with("span 0: digest")), "{found:?}");
}

/// A zstd layer in frames of so many bytes, and its zTOC.
fn zstd_layer(frame_bytes: usize) -> (Vec<u8>, Vec<u8>, Expected) {
    let tar = inflated(&corpus("small-multimember.tar.gz"));
    let blob: Vec<u8> = tar.chunks(frame_bytes).flat_map(|part| ::zstd::encode_all(part, 3).expect("memory")).collect();
    let options = BuildOptions { span_size_bytes: 100_000, ..BuildOptions::default() };
    let mut builder = ZtocBuilder::new(options, Compression::Zstd).expect("memory");
    builder.push(&blob, &mut |_| Ok(())).expect("sound");
    let ztoc = builder.finish(&mut |_| Ok(())).expect("sound").ztoc;
    let blob_size = BlobOffset::new(u64_from_usize(blob.len()));
    let expected = Expected { digest: Digest::of(&blob), blob_size, diff_id: Some(Digest::of(&tar)) };
    (blob, ztoc, expected)
}

#[test]
fn ztocs_of_zstd_layers_are_proven_and_lies_about_their_frames_found() {
    let (blob, ztoc, expected) = zstd_layer(20_000);
    for piece in [7, usize::MAX] {
        let checked = checked(&blob, &ztoc, expected, piece);
        assert!(checked.findings.is_empty() && checked.unchecked.is_none(), "{:?}", lines(&checked));
    }
    let sound = Forged::of(&ztoc);
    assert!(sound.checkpoints.len() > 2);
    let lie = |change: fn(&mut Forged)| {
        let mut forged = Forged::of(&ztoc);
        change(&mut forged);
        let written = forged.written_as(Compression::Zstd);
        lines(&checked(&blob, &written, expected, 1000)).join("\n")
    };
    let found = lie(|f| f.checkpoints[1].blob = BlobOffset::new(f.checkpoints[1].blob.get() + 1));
    assert!(found.contains("checkpoint 1: blob offset: expected") && found.contains("span 1: digest"), "{found}");
    let found = lie(|f| f.checkpoints[1].layer = LayerOffset::new(f.checkpoints[1].layer.get() + 1));
    assert!(found.contains("checkpoint 1: layer offset: expected a place where"), "{found}");
    let found = lie(|f| f.digests[0] = Digest::of(b"another"));
    assert!(found.contains("span 0: digest: expected"), "{found}");

    let mut damaged = blob.clone();
    let at = damaged.len() - 1;
    damaged.truncate(at);
    let found = lines(&checked(&damaged, &ztoc, expected, 1000)).join("\n");
    assert!(found.contains("layer: zstd data: expected zstd frames up to the end"), "{found}");
    let gzip = corpus("small-multimember.tar.gz");
    let found = lines(&checked(&gzip, &ztoc, truth(&gzip), 1000)).join("\n");
    assert!(found.contains("zTOC: compression: expected gzip, found zstd"), "{found}");
}
