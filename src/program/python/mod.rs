//! The modules that a Python program imports before it does anything of its own. Their names stand in its sources, and where
//! the interpreter looks for them follows from where it lies itself (Python's documentation of `sys.path` and of `site`).
//!
//! Compiled modules (`__pycache__`) are what the interpreter reads; the sources beside them are only looked at here.

mod source;

use std::collections::HashSet;

use super::{Command, Contents, MAX_DIRS, Place, Stack, part};
use source::Import;

/// Most modules of a program; large ones have some thousands.
const MAX_MODULES: usize = 4096;
/// Most names that are looked for: many stand for functions and not for modules.
const MAX_NAMES: usize = 1 << 16;
/// How much of a source is read.
const SOURCE_BYTES: u64 = 256 << 10;

/// Files that the C library reads for the interpreter: it wants UTF-8 (PEP 538), and its `time` the zone.
const LIBRARY_FILES: [&[u8]; 4] = [
    b"usr/lib/locale/C.utf8/LC_CTYPE",
    b"usr/lib/x86_64-linux-gnu/gconv/gconv-modules.cache",
    b"usr/lib/aarch64-linux-gnu/gconv/gconv-modules.cache",
    b"etc/localtime",
];
/// What the interpreter imports by itself.
const STARTS: [&str; 5] = ["encodings", "encodings.aliases", "encodings.utf_8", "site", "sitecustomize"];
/// Ends of names of compiled extensions, behind the tag of the interpreter.
const EXTENSIONS: [&str; 4] =
    ["-x86_64-linux-gnu.so", "-aarch64-linux-gnu.so", "-x86_64-linux-musl.so", "-aarch64-linux-musl.so"];

/// An interpreter and where it looks for modules.
pub(super) struct Python {
    dirs: Vec<Vec<u8>>,
    /// Of compiled modules, as `cpython-311`.
    tag: String,
}

impl Python {
    /// The interpreter that a path leads to, if it is one: by the name of the file, as `python3.11`.
    pub(super) fn of(path: &[u8], place: &Place, command: &Command, stack: &Stack) -> Option<Self> {
        let version = std::str::from_utf8(place.name.strip_prefix(b"python")?).ok()?;
        let (major, minor) = version.split_once('.')?;
        let is_number = |text: &str| !text.is_empty() && text.len() <= 3 && text.bytes().all(|b| b.is_ascii_digit());
        if !is_number(major) || !is_number(minor) {
            return None;
        }
        let libraries = format!("lib/python{version}").into_bytes();
        let parent = |dir: &[u8]| dir.iter().rposition(|byte| *byte == b'/').map_or(vec![], |at| dir[..at].to_vec());
        let prefix = parent(&place.dir);
        let mut dirs: Vec<Vec<u8>> = command.python_dirs().map(<[u8]>::to_vec).collect();
        dirs.push(join(&prefix, &libraries));
        dirs.push(join(&prefix, &[&libraries[..], b"/lib-dynload"].concat()));
        // A virtual environment: its interpreter is a link to another one.
        let environment = join(&parent(path), b"..");
        if stack.file(&join(&environment, b"pyvenv.cfg")).is_some() {
            dirs.push(join(&environment, &[&libraries[..], b"/site-packages"].concat()));
        }
        dirs.push(join(&prefix, &[&libraries[..], b"/site-packages"].concat()));
        // As Debian has it.
        dirs.push([b"usr/local/", &libraries[..], b"/dist-packages"].concat());
        dirs.push(format!("usr/lib/python{major}/dist-packages").into_bytes());
        Some(Self { dirs, tag: format!("cpython-{major}{minor}") })
    }

    /// The files of the modules that `scripts` and the command's own words import, in the order in which they are read.
    pub(super) fn files(
        mut self,
        scripts: &[Place],
        command: &Command,
        contents: &mut dyn Contents,
        stack: &Stack,
    ) -> Vec<Vec<u8>> {
        let mut names: Vec<String> = STARTS.iter().map(|name| (*name).to_owned()).collect();
        let mut files = Vec::new();
        for script in scripts.iter().take(MAX_DIRS) {
            let Some(text) = text(script, contents) else { continue };
            // Where a script lies is looked first.
            self.dirs.insert(0, script.dir.clone());
            names.extend(source::imports(&text, true).iter().flat_map(|import| absolute(import, "", true)));
            files.extend(source::paths(&text).map(|path| path.as_bytes().to_vec()));
        }
        self.dirs.push(command.work_dir().to_vec());
        let named = command.python_modules().filter_map(source::module);
        names.extend(named.flat_map(|name| [name.clone(), format!("{name}.__main__")]));
        let modules = self.closure(names, contents, stack);
        LIBRARY_FILES.iter().map(|path| path.to_vec()).chain(modules).chain(files).collect()
    }

    /// The files of modules and of all that they import. What a module imports comes behind it and before what comes after it.
    fn closure(&self, names: Vec<String>, contents: &mut dyn Contents, stack: &Stack) -> Vec<Vec<u8>> {
        let mut files = Vec::new();
        let mut seen = HashSet::new();
        let mut left = names;
        left.reverse();
        while let Some(name) = left.pop() {
            if files.len() >= MAX_MODULES || seen.len() >= MAX_NAMES {
                break;
            }
            if seen.contains(&name) {
                continue;
            }
            // A module's packages are loaded first.
            if let Some((package, _)) = name.rsplit_once('.').filter(|(package, _)| !seen.contains(*package)) {
                let package = package.to_owned();
                left.push(name);
                left.push(package);
                continue;
            }
            let module = self.find(&name, stack);
            if let Some(Module { file, source, is_package }) = module {
                files.push(file);
                let text = source.and_then(|place| text(&place, contents)).unwrap_or_default();
                let imports = source::imports(&text, false);
                let mut more: Vec<String> =
                    imports.iter().flat_map(|import| absolute(import, &name, is_package)).collect();
                more.reverse();
                left.extend(more.into_iter().filter(|name| !seen.contains(name)));
            }
            seen.insert(name);
        }
        files
    }

    /// Where a module is, in the order in which the interpreter looks: in each directory a package, an extension, a source.
    fn find(&self, name: &str, stack: &Stack) -> Option<Module> {
        let path = name.replace('.', "/");
        let last = name.rsplit('.').next().unwrap_or_default();
        for dir in &self.dirs {
            let base = join(dir, path.as_bytes());
            if let Some(module) = self.source(&base, "__init__", true, stack) {
                return Some(module);
            }
            let tag = &self.tag;
            let tagged = EXTENSIONS.iter().map(|end| format!(".{tag}{end}"));
            let mut names = tagged.chain([".abi3.so".to_owned(), ".so".to_owned()]);
            if let Some(file) = names.find_map(|end| {
                let file = [&base[..], end.as_bytes()].concat();
                stack.file(&file).is_some().then_some(file)
            }) {
                return Some(Module { file, source: None, is_package: false });
            }
            let folder = base.get(..base.len() - last.len()).unwrap_or_default();
            if let Some(module) = self.source(folder, last, false, stack) {
                return Some(module);
            }
        }
        None
    }

    /// The source `name` of a directory, and what the interpreter reads in its place where it is compiled.
    fn source(&self, dir: &[u8], name: &str, is_package: bool, stack: &Stack) -> Option<Module> {
        let path = join(dir, format!("{name}.py").as_bytes());
        let source = stack.file(&path)?;
        let compiled = join(dir, format!("__pycache__/{name}.{}.pyc", self.tag).as_bytes());
        let file = if stack.file(&compiled).is_some() { compiled } else { path };
        Some(Module { file, source: Some(source), is_package })
    }
}

/// A module that is there.
struct Module {
    /// What the interpreter reads.
    file: Vec<u8>,
    /// Where it says what it imports.
    source: Option<Place>,
    is_package: bool,
}

/// The modules that an import of module `by` may load.
fn absolute(import: &Import, by: &str, is_package: bool) -> Vec<String> {
    let mut from = Some(by).filter(|_| import.level > 0);
    let ups = if is_package { import.level.saturating_sub(1) } else { import.level };
    for _ in 0..ups {
        from = from.map(|name| name.rsplit_once('.').map_or("", |(package, _)| package));
    }
    let dotted = |left: &str, right: &str| match (left, right) {
        ("", name) | (name, "") => name.to_owned(),
        (left, right) => format!("{left}.{right}"),
    };
    let module = dotted(from.unwrap_or_default(), &import.module);
    let names = import.names.iter().map(|name| dotted(&module, name));
    std::iter::once(module.clone()).filter(|module| !module.is_empty()).chain(names).collect()
}

/// What a source says; `None` when it cannot be had. Bytes that are no UTF-8 stand in names of nobody.
fn text(place: &Place, contents: &mut dyn Contents) -> Option<String> {
    let range = part(place.data?, 0, SOURCE_BYTES)?;
    Some(String::from_utf8_lossy(&contents.read(place.layer, range).ok()?).into_owned())
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    [dir, name].join(&b'/')
}
