//! The foreign judges of the EROFS writer: fsck.erofs and the kernel. Every layer of the corpus is written as an image
//! file in both forms, checked, mounted and compared with its tree.

mod hard_cases;
mod overlays;
mod support;

use std::process::Command;

use sociblk::erofs::BlockSize;
use support::{Mount, Scratch, corpus_layers, missing, skipped, write_image, write_tree};

const FORMS: [BlockSize; 2] = [BlockSize::B4096, BlockSize::B512];

#[test]
fn fsck_finds_nothing_wrong_with_any_layer_in_either_form() {
    let name = "fsck_finds_nothing_wrong_with_any_layer_in_either_form";
    if Command::new("fsck.erofs").arg("--version").output().is_err() {
        return skipped(name, "fsck.erofs (Debian package erofs-utils)");
    }
    let scratch = Scratch::new();
    let mut small_form_unknown = false;
    let image = scratch.path("image");
    let mut judge = |what: &dyn std::fmt::Debug, form: BlockSize| {
        // `--extract` alone reads all contents as well, and writes nothing.
        let out = Command::new("fsck.erofs").arg("--extract").arg(&image).output().expect("fsck.erofs runs");
        let text = String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
        if form == BlockSize::B512 && !out.status.success() && text.contains("blksize 512 isn't supported") {
            small_form_unknown = true;
            return;
        }
        assert!(out.status.success() && !text.contains("<E>"), "{what:?} {form:?}: {text}");
    };
    let tar = hard_cases::hard_layer();
    for form in FORMS {
        for layer in corpus_layers() {
            write_image(&layer, form, &image);
            judge(&layer, form);
        }
        write_tree(&hard_cases::hard_tree(&tar), &tar, form, &image);
        judge(&"hard cases", form);
    }
    if small_form_unknown {
        skipped(name, "for the 512-byte form: an fsck.erofs that knows such blocks (erofs-utils 1.6)");
    }
}

#[test]
fn every_layer_shows_its_tree_in_either_form() {
    let name = "every_layer_shows_its_tree_in_either_form";
    if let Some(what) = missing("erofs") {
        return skipped(name, &what);
    }
    let scratch = Scratch::new();
    for layer in corpus_layers() {
        for form in FORMS {
            let image = scratch.path("image");
            write_image(&layer, form, &image);
            let mount = Mount::erofs(&image, &scratch.dir("mnt"));
            let out = Command::new("python3")
                .arg(support::shipped_corpus().join("check_tree.py"))
                .arg(mount.dir())
                .arg(support::beside(&layer, ".tree.json"))
                .output();
            let out = match out {
                Ok(out) => out,
                Err(_) => return skipped(name, "python3"),
            };
            let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success(), "{layer:?} {form:?}: {text}");
        }
    }
}

#[test]
fn the_512_byte_form_ends_in_the_tar() {
    let scratch = Scratch::new();
    for layer in corpus_layers() {
        let image = scratch.path("image");
        let metadata_bytes = write_image(&layer, BlockSize::B512, &image);
        let tar = support::inflate(&layer);
        let image = std::fs::read(&image).expect("image");
        let rest = &image[metadata_bytes..];
        assert!(rest.starts_with(&tar), "{layer:?}");
        assert!(rest.len() - tar.len() < 512 && rest[tar.len()..].iter().all(|&b| b == 0), "{layer:?}");
    }
}
