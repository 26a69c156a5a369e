//! The test layers, for the tests of this module.

use std::path::{Path, PathBuf};

/// A file with its name.
pub struct CorpusFile {
    /// File name without the folder.
    pub name: String,
    /// Its whole content.
    pub bytes: Vec<u8>,
}

/// All zTOCs: of the project's own corpus, and of the larger one beside the project where that exists.
pub fn ztocs() -> Vec<CorpusFile> {
    let found: Vec<_> = folders().iter().flat_map(|folder| list(folder)).map(|path| read(&path)).collect();
    assert!(found.len() >= 10, "the corpus under tests/corpus is incomplete");
    found
}

/// The layer that a zTOC is of.
pub fn layer_of(ztoc_name: &str) -> CorpusFile {
    find(ztoc_name.trim_end_matches(".ztoc").trim_end_matches(".span-256k").trim_end_matches(".span-1m"))
}

/// The tree of a layer.
pub fn tree_of(layer_name: &str) -> CorpusFile {
    find(&format!("{layer_name}.tree.json"))
}

fn find(name: &str) -> CorpusFile {
    let path = folders().into_iter().map(|folder| folder.join(name)).find(|path| path.exists());
    read(&path.unwrap_or_else(|| panic!("no {name} in the corpus")))
}

fn folders() -> Vec<PathBuf> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![project.join("tests/corpus")];
    let shared = project.join("../shared/corpus/layers");
    if shared.exists() {
        folders.push(shared);
    }
    folders
}

fn list(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("folder entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "ztoc"));
    paths.sort();
    paths
}

fn read(path: &Path) -> CorpusFile {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let name = path.file_name().expect("a file").to_string_lossy().into_owned();
    CorpusFile { name, bytes }
}
