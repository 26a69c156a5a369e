//! Who may name whom: the table of docs/ARCHITECTURE.md, checked against every `crate::` path of the source.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Module, and the modules of ours that it may name.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("units", &[]),
    ("sys", &["units"]),
    ("containerd", &["units"]),
    ("registry", &["units", "containerd"]),
    ("cri", &["registry"]),
    ("kubernetes", &["registry"]),
    ("spans", &["units"]),
    ("inflate", &["units", "spans", "sys"]),
    ("database", &[]),
    ("soci", &["units", "database", "registry", "spans", "inflate", "order"]),
    ("order", &["units"]),
    ("tree", &["units", "spans"]),
    ("program", &["units", "tree"]),
    ("erofs", &["units", "tree"]),
    ("cache", &["units", "spans", "sys"]),
    ("fill", &["units", "registry", "soci", "spans", "inflate", "cache", "sys"]),
    ("frontend", &["units", "sys"]),
    ("mount", &["units", "sys"]),
    ("snapshot", &["units", "database"]),
    ("config", &[]),
    ("observe", &[]),
    (
        "node",
        &[
            "units",
            "containerd",
            "registry",
            "cri",
            "kubernetes",
            "soci",
            "spans",
            "inflate",
            "tree",
            "erofs",
            "cache",
            "fill",
            "order",
            "program",
            "frontend",
            "mount",
            "snapshot",
            "sys",
            "config",
            "observe",
        ],
    ),
    ("builder", &["units", "database", "registry", "soci", "fill", "node", "config", "observe"]),
    ("cli", &["units", "node", "builder", "config", "observe", "sys"]),
];

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("readable source folder") {
        let path = entry.expect("directory entry").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The source without comments and without test modules, which may use anything.
fn code_of(text: &str) -> String {
    let before_tests = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    before_tests.lines().map(|l| l.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// First segments after `crate::`, those in (nested) braces included.
fn named(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        if let Some(list) = after.strip_prefix('{') {
            let mut depth = 0_i32;
            let mut at_start = true;
            for (i, c) in list.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => at_start = true,
                    c if at_start && !c.is_whitespace() => {
                        names.insert(ident(&list[i..]));
                        at_start = false;
                    }
                    _ => {}
                }
            }
        } else {
            names.insert(ident(after));
        }
    }
    names
}

fn ident(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn modules_name_only_what_they_may_know() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let modules: BTreeSet<&str> = MAY_KNOW.iter().map(|(m, _)| *m).chain(["testkit"]).collect();
    let mut checked = 0;
    let mut wrong = Vec::new();
    for (module, allowed) in MAY_KNOW {
        let mut files = Vec::new();
        rust_files(&src.join(module), &mut files);
        assert!(!files.is_empty(), "no source in src/{module}");
        for file in files {
            if file.to_string_lossy().ends_with("tests.rs") || file.components().any(|c| c.as_os_str() == "tests") {
                continue;
            }
            checked += 1;
            let text = std::fs::read_to_string(&file).expect("readable source");
            for name in named(&code_of(&text)) {
                if modules.contains(name.as_str()) && name != *module && !allowed.contains(&name.as_str()) {
                    wrong
                        .push(format!("{}: {module} names {name}", file.strip_prefix(&src).unwrap_or(&file).display()));
                }
            }
        }
    }
    assert!(checked > 30, "only {checked} files found: is the table out of date?");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_stands_in_the_table() {
    let lib = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).expect("lib.rs");
    for module in lib.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';')) {
        assert!(module == "testkit" || MAY_KNOW.iter().any(|(m, _)| *m == module), "{module} is not in the table");
    }
}

#[test]
fn unsafe_stands_only_in_sys() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    for file in files {
        if file.starts_with(src.join("sys")) {
            continue;
        }
        let code = code_of(&std::fs::read_to_string(&file).expect("readable source"));
        assert!(!code.contains("allow(unsafe_code)"), "{} opens the door to unsafe code", file.display());
    }
}

#[test]
fn the_scanner_sees_nested_lists_and_skips_comments() {
    let code = code_of("use crate::{units::{A, B}, tree}; // crate::erofs\nfn f() { crate::cache::x() }");
    assert_eq!(named(&code), ["cache", "tree", "units"].map(String::from).into());
}
