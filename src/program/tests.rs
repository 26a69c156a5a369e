use std::convert::Infallible;
use std::io;

use super::{Command, Contents, HEAD_BYTES, Stack, WHOLE_BYTES, needed};
use crate::soci::build::{BuildOptions, ZtocBuilder};
use crate::spans::ztoc::Ztoc;
use crate::spans::{Compression, EntryKind, ModTime, TocEntry};
use crate::tree::{Tree, TreeOptions};
use crate::units::{LayerOffset, LayerRange, usize_from_u64};

/// What an entry of a layer is.
enum Is<'a> {
    File(&'a [u8]),
    Link(&'a str),
    Dir,
}

/// A layer: its bytes and its tree.
fn layer(entries: &[(&str, Is<'_>)]) -> (Vec<u8>, Tree) {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, is) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o755);
        match is {
            Is::File(bytes) => {
                header.set_size(bytes.len() as u64);
                tar.append_data(&mut header, path, *bytes).expect("file");
            }
            Is::Link(to) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                tar.append_link(&mut header, path, to).expect("link");
            }
            Is::Dir => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_size(0);
                tar.append_data(&mut header, path, io::empty()).expect("directory");
            }
        }
    }
    let bytes = tar.into_inner().expect("tar");
    let mut builder = ZtocBuilder::new(BuildOptions::default(), Compression::Uncompressed).expect("builder");
    builder.push(&bytes, &mut |_| Ok(())).expect("tar");
    let built = builder.finish(&mut |_| Ok(())).expect("zTOC");
    let ztoc = Ztoc::parse(&built.ztoc).expect("zTOC");
    (bytes, Tree::build(ztoc.entries(), TreeOptions::new(ztoc.layer_size())).expect("tree"))
}

/// The layers' bytes; every read of more than they have, or when `fails`, is an error.
struct Bytes {
    layers: Vec<Vec<u8>>,
    fails: bool,
    reads: usize,
}

impl Bytes {
    fn of(&self, layer: usize, range: LayerRange) -> Option<&[u8]> {
        let (from, to) = usize_from_u64(range.start().get()).zip(usize_from_u64(range.end().get()))?;
        self.layers.get(layer)?.get(from..to)
    }
}

impl Contents for Bytes {
    fn read(&mut self, layer: usize, range: LayerRange) -> io::Result<Vec<u8>> {
        self.reads += 1;
        if self.fails {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(self.of(layer, range).expect("only what is there is read").to_vec())
    }
}

/// What is wanted, each by its content, which the tests make unique; what is named twice comes once.
fn wanted(layers: Vec<(Vec<u8>, Tree)>, config: &str) -> Vec<(usize, Vec<u8>)> {
    let (layers, trees): (Vec<_>, Vec<_>) = layers.into_iter().unzip();
    let mut bytes = Bytes { layers, fails: false, reads: 0 };
    let stack = Stack::new(trees.into_iter().map(Some).collect());
    let found = needed(&stack, &Command::of_config(config.as_bytes()), &mut bytes);
    let mut found: Vec<_> =
        found.iter().map(|w| (w.layer, bytes.of(w.layer, w.range).expect("there").to_vec())).collect();
    found.dedup();
    found
}

/// A program for x86-64 that is linked with `libraries`.
fn elf(interpreter: &str, libraries: &[&str], run_path: &str, tail: &[u8]) -> Vec<u8> {
    let mut strings = vec![0];
    let mut add = |text: &str| {
        let at = strings.len() as u64;
        strings.extend_from_slice(text.as_bytes());
        strings.push(0);
        at
    };
    let mut dynamic: Vec<(u64, u64)> = libraries.iter().map(|name| (1, add(name))).collect();
    dynamic.push((29, add(run_path)));
    let interpreter_at = add(interpreter);
    const HEADERS: u64 = 64 + 3 * 56;
    let dynamic_at = HEADERS;
    let dynamic_len = (dynamic.len() as u64 + 3) * 16;
    let strings_at = dynamic_at + dynamic_len;
    dynamic.extend([(5, strings_at), (10, strings.len() as u64), (0, 0)]);
    let total = strings_at + strings.len() as u64 + tail.len() as u64;
    let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let (half, word, long) = (u16::to_le_bytes, u32::to_le_bytes, u64::to_le_bytes);
    [half(3), half(62)].iter().for_each(|field| out.extend(field));
    out.extend(word(1));
    [HEADERS, 64, 0].iter().for_each(|field| out.extend(long(*field)));
    out.extend(word(0));
    [64, 56, 3, 0, 0, 0].iter().for_each(|field| out.extend(half(*field)));
    let segments = [
        (1_u32, 6_u32, 0, total),
        (3, 4, strings_at + interpreter_at, interpreter.len() as u64 + 1),
        (2, 6, dynamic_at, dynamic_len),
    ];
    for (kind, flags, at, len) in segments {
        out.extend(word(kind));
        out.extend(word(flags));
        [at, at, at, len, len, 8].iter().for_each(|field| out.extend(long(*field)));
    }
    dynamic.iter().for_each(|(tag, value)| out.extend([long(*tag), long(*value)].concat()));
    out.extend_from_slice(&strings);
    out.extend_from_slice(tail);
    out
}

const LINKER: &str = "/lib64/ld-linux-x86-64.so.2";
const CONFIG: &str = r#"{"config":{"Entrypoint":["/start.sh","-x"],"Cmd":["app","conf/a.toml"],"WorkingDir":"/srv",
    "Env":["PATH=/opt/bin:/usr/bin","LD_LIBRARY_PATH=/opt/lib"]}}"#;

#[test]
fn a_script_a_program_and_their_libraries_are_found_where_the_linker_finds_them() {
    let app = elf(LINKER, &["liba.so", "libc.so.6", "libnone.so"], "$ORIGIN/../private", b"app");
    let shell = elf(LINKER, &["libc.so.6"], "", b"shell");
    let a = elf("", &["libb.so"], "", b"a");
    let base = layer(&[
        ("bin", Is::Link("usr/bin")),
        ("lib64", Is::Link("usr/lib64")),
        ("usr/bin/sh", Is::Link("../../bin/dash")),
        ("usr/bin/dash", Is::File(&shell)),
        ("usr/lib64/ld-linux-x86-64.so.2", Is::File(b"linker")),
        ("usr/lib/x86_64-linux-gnu/libc.so.6", Is::File(b"the C library")),
        ("usr/lib/liba.so", Is::File(b"not the one: RUNPATH comes first")),
        ("etc/ld.so.cache", Is::File(b"cache")),
        ("srv/conf/a.toml", Is::File(b"old settings")),
    ]);
    let top = layer(&[
        ("start.sh", Is::File(b"#! /bin/sh -e\nexec \"$@\"\n")),
        ("opt/bin/app", Is::File(&app)),
        ("opt/private/liba.so", Is::File(&a)),
        ("opt/lib/libb.so", Is::File(b"b")),
        ("srv/conf/a.toml", Is::File(b"settings")),
        ("srv/unrelated", Is::File(b"unrelated")),
    ]);
    let found = wanted(vec![base, top], CONFIG);
    let want: [(usize, &[u8]); 9] = [
        (1, b"#! /bin/sh -e\nexec \"$@\"\n"),
        (1, &app),
        (1, b"settings"),
        (0, b"cache"),
        (0, &shell),
        (0, b"linker"),
        (1, &a),
        (0, b"the C library"),
        (1, b"b"),
    ];
    let want: Vec<_> = want.iter().map(|(layer, bytes)| (*layer, bytes.to_vec())).collect();
    assert_eq!(found, want);
}

#[test]
fn what_upper_layers_hide_is_not_found() {
    let lower = || layer(&[("usr/bin/app", Is::File(b"lower")), ("x/app", Is::File(b"x"))]);
    let config = r#"{"config":{"Cmd":["app"]}}"#;
    for (upper, want) in [
        (layer(&[("other", Is::Dir)]), vec![(0, b"lower".to_vec())]),
        (layer(&[("usr/bin/app", Is::File(b"upper"))]), vec![(1, b"upper".to_vec())]),
        (layer(&[("usr/bin/.wh.app", Is::File(b""))]), vec![]),
        (layer(&[("usr/bin/.wh..wh..opq", Is::File(b""))]), vec![]),
        (layer(&[("usr/.wh.bin", Is::File(b""))]), vec![]),
        (layer(&[("usr", Is::File(b"a file now"))]), vec![]),
        (layer(&[("usr/bin", Is::Link("/x"))]), vec![(0, b"x".to_vec())]),
        (layer(&[("usr/bin", Is::Link("bin"))]), vec![]),
    ] {
        assert_eq!(wanted(vec![lower(), upper], config), want);
    }
}

#[test]
fn of_a_long_program_only_what_the_linker_reads_is_wanted() {
    let mut app = elf(LINKER, &["libc.so.6"], "", &vec![7; usize_from_u64(2 * WHOLE_BYTES).expect("small")]);
    // The segment that is written to is a short one.
    app.get_mut(64 + 32..64 + 40).expect("a header").copy_from_slice(&5000_u64.to_le_bytes());
    let base = layer(&[("usr/bin/app", Is::File(&app)), ("lib/libc.so.6", Is::File(b"C"))]);
    let found = wanted(vec![base], r#"{"config":{"Cmd":["app"]}}"#);
    let lens: Vec<usize> = found.iter().map(|(_, bytes)| bytes.len()).collect();
    assert_eq!(lens, [usize_from_u64(HEAD_BYTES).expect("small"), 5000, 64 << 10, 1]);
}

#[test]
fn what_makes_no_sense_or_cannot_be_had_is_a_file_like_others() {
    let app = elf(LINKER, &["libc.so.6"], "", b"x");
    let config = r#"{"config":{"Cmd":["app"]}}"#;
    for len in 0..app.len() {
        let cut = app.get(..len).expect("shorter");
        let found = wanted(vec![layer(&[("usr/bin/app", Is::File(cut))])], config);
        assert!(found.iter().all(|(_, bytes)| bytes == cut), "{len} bytes of it");
    }
    for at in 0..app.len() {
        let mut bent = app.clone();
        *bent.get_mut(at).expect("a byte") = 0xff;
        wanted(vec![layer(&[("usr/bin/app", Is::File(&bent)), ("lib/libc.so.6", Is::File(b"C"))])], config);
    }
    for config in [
        "",
        "{}",
        "[]",
        r#"{"config":null}"#,
        r#"{"config":{"Cmd":["nothing","","/"]}}"#,
        r#"{"config":{"Env":["PATH"]}}"#,
    ] {
        assert_eq!(wanted(vec![layer(&[("usr/bin/app", Is::File(&app))])], config), []);
    }
    let (bytes, tree) = layer(&[("usr/bin/app", Is::File(&app))]);
    let mut contents = Bytes { layers: vec![bytes], fails: true, reads: 0 };
    let found = needed(&Stack::new(vec![Some(tree)]), &Command::of_config(config.as_bytes()), &mut contents);
    let found: Vec<_> = found.iter().map(|wanted| contents.of(wanted.layer, wanted.range)).collect();
    assert_eq!(found, [Some(&app[..]), Some(&app[..])], "its head, and all of it");
}

#[test]
fn headers_that_claim_much_take_no_memory() {
    // A program's headers, in a file that is as long as they say: gigabytes of zeros in a layer of a few bytes.
    struct Zeros {
        head: Vec<u8>,
        read_bytes: u64,
    }
    impl Contents for Zeros {
        fn read(&mut self, _: usize, range: LayerRange) -> io::Result<Vec<u8>> {
            self.read_bytes += range.len_bytes();
            let len = usize_from_u64(range.len_bytes()).expect("small");
            let from = usize_from_u64(range.start().get() - 512).expect("small");
            Ok((from..from + len).map(|at| self.head.get(at).copied().unwrap_or(0)).collect())
        }
    }
    const GIB: u64 = 1 << 30;
    let header = |at: usize, field: usize| 64 + at * 56 + field;
    let entry = TocEntry {
        name: (&b"usr/bin/app"[..]).into(),
        kind: EntryKind::Reg,
        data: LayerRange::from_len(LayerOffset::new(512), 8 * GIB).expect("ordered"),
        linkname: (&b""[..]).into(),
        mode: 0o755,
        uid: 0,
        gid: 0,
        uname: (&b""[..]).into(),
        gname: (&b""[..]).into(),
        mtime: ModTime { secs: 0, nanos: 0 },
        devmajor: 0,
        devminor: 0,
        pax: Vec::new(),
    };
    for (place, value) in [
        // Lengths of the interpreter's name, and of the dynamic section; the number of headers.
        (header(1, 32), 8 * GIB - 4096),
        (header(2, 32), 8 * GIB - 4096),
        (56, 0xffff),
    ] {
        let mut head = elf(LINKER, &["libc.so.6"], "/lib", b"");
        let width = if place == 56 { 2 } else { 8 };
        head[place..place + width].copy_from_slice(&value.to_le_bytes()[..width]);
        let options = TreeOptions::new(LayerOffset::new(9 * GIB));
        let tree = Tree::build([Ok::<_, Infallible>(entry.clone())], options);
        let mut contents = Zeros { head, read_bytes: 0 };
        let stack = Stack::new(vec![Some(tree.expect("a tree"))]);
        let found = needed(&stack, &Command::of_config(br#"{"config":{"Cmd":["app"]}}"#), &mut contents);
        assert!(
            !found.is_empty() && contents.read_bytes < 1 << 20,
            "{value} at {place}: {} bytes",
            contents.read_bytes
        );
    }
}

#[test]
fn a_shell_is_told_what_to_run_and_files_lie_where_it_runs() {
    let files = || {
        layer(&[
            ("bin/sh", Is::File(b"shell")),
            ("usr/bin/node", Is::File(b"node")),
            ("app/server.js", Is::File(b"server")),
            ("app/node", Is::File(b"not the program")),
        ])
    };
    for (command, want) in [
        (r#"["/bin/sh","-c","exec node server.js"]"#, &[&b"shell"[..], b"node"][..]),
        (r#"["sh","-ec","node /app/server.js"]"#, &[b"shell", b"node", b"server"]),
        (r#"["node","server.js"]"#, &[b"node", b"server"]),
        (r#"["node","-c","server.js"]"#, &[b"node", b"server"]),
    ] {
        let config = format!(r#"{{"config":{{"Cmd":{command},"WorkingDir":"/app"}}}}"#);
        let found: Vec<_> = wanted(vec![files()], &config).into_iter().map(|(_, bytes)| bytes).collect();
        assert_eq!(found, want, "{command}");
    }
    let no_dir = r#"{"config":{"Cmd":["node"],"WorkingDir":null}}"#;
    assert_eq!(wanted(vec![files()], no_dir), [(0, b"node".to_vec())]);
}

#[test]
fn env_finds_its_argument_by_itself() {
    let base = layer(&[
        ("usr/bin/env", Is::File(b"env")),
        ("usr/bin/tool", Is::File(b"tool")),
        ("run", Is::File(b"#!/usr/bin/env -S A=b tool --flag")),
    ]);
    let found = wanted(vec![base], r#"{"config":{"Entrypoint":["/run"]}}"#);
    let contents: Vec<_> = found.into_iter().map(|(_, bytes)| bytes).collect();
    assert_eq!(contents, [&b"#!/usr/bin/env -S A=b tool --flag"[..], b"env", b"tool"]);
}

#[test]
fn a_shell_script_names_what_it_runs() {
    let script = b"#!/bin/sh\n# other\nset -e\nexec server --config conf/a\n";
    let base = layer(&[
        ("bin/sh", Is::File(b"shell")),
        ("usr/bin/server", Is::File(b"server")),
        ("usr/bin/other", Is::File(b"other")),
        ("w/conf/a", Is::File(b"a")),
        ("run", Is::File(script)),
    ]);
    let found = wanted(vec![base], r#"{"config":{"Entrypoint":["/run"],"WorkingDir":"/w"}}"#);
    let contents: Vec<_> = found.into_iter().map(|(_, bytes)| bytes).collect();
    assert_eq!(contents, [&script[..], b"shell", b"server", b"a"]);
}

#[test]
fn modules_of_python_are_those_that_a_program_imports_and_their_imports() {
    let base = layer(&[
        ("usr/bin/python3", Is::Link("python3.11")),
        ("usr/bin/python3.11", Is::File(b"python")),
        ("usr/lib/python3.11/site.py", Is::File(b"import os, builtins\n")),
        ("usr/lib/python3.11/__pycache__/site.cpython-311.pyc", Is::File(b"site, compiled")),
        ("usr/lib/python3.11/os.py", Is::File(b"'os.py'")),
        ("usr/lib/python3.11/__pycache__/os.cpython-310.pyc", Is::File(b"of another interpreter")),
        ("usr/lib/python3.11/json/__init__.py", Is::File(b"from .decoder import JSONDecoder\n'json'\n")),
        ("usr/lib/python3.11/json/decoder.py", Is::File(b"from json import scanner\nimport later\n'decoder'")),
        (
            "usr/lib/python3.11/json/scanner.py",
            Is::File(b"try:\n    from _json import make\nexcept ImportError: pass\n"),
        ),
        (
            "usr/lib/python3.11/lib-dynload/_json.cpython-311-x86_64-linux-gnu.so",
            Is::File(&elf("", &["libj.so"], "", b"j")),
        ),
        ("usr/lib/libj.so", Is::File(b"a library of an extension")),
        ("usr/lib/python3.11/later.py", Is::File(b"def f():\n    import unused\n'later'")),
        ("usr/lib/python3.11/unused.py", Is::File(b"unused")),
        ("usr/lib/python3.11/json.py", Is::File(b"packages go before modules")),
    ]);
    let main = b"import json\nfrom .local import x\nimport helper.deep\nopen('/srv/data')\n'main'";
    let app = layer(&[
        ("app/main.py", Is::File(main)),
        ("app/helper/deep.py", Is::File(b"from . import near\n'deep'")),
        ("app/helper/near.py", Is::File(b"from ..helper import deep\n'near'")),
        ("srv/data", Is::File(b"data")),
    ]);
    let found = wanted(vec![base, app], r#"{"config":{"Cmd":["python3","/app/main.py"]}}"#);
    let found: Vec<String> = found.iter().map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned()).collect();
    let want = [
        "python",
        "import json\n",
        "site, compiled",
        "'os.py'",
        "from .decoder",
        "from json import scanner",
        "try:",
        "\u{7f}ELF",
        "def f()",
        "from . import near",
        "from ..helper",
        "data",
        "a library",
    ];
    assert_eq!(found.len(), want.len(), "{found:#?}");
    for (found, want) in found.iter().zip(want) {
        assert!(found.starts_with(want), "{want:?}: {found:?}");
    }
}

#[test]
fn python_is_told_in_several_ways_what_to_run() {
    let files = || {
        layer(&[
            ("usr/local/bin/python3.12", Is::File(b"python")),
            ("venv/bin/python", Is::Link("/usr/local/bin/python3.12")),
            ("venv/pyvenv.cfg", Is::File(b"home = /usr/local/bin")),
            ("venv/bin/serve", Is::File(b"#!/venv/bin/python\nfrom server.cli import main\n")),
            ("venv/lib/python3.12/site-packages/server/__init__.py", Is::File(b"'server'")),
            ("venv/lib/python3.12/site-packages/server/__main__.py", Is::File(b"'server.main'")),
            ("venv/lib/python3.12/site-packages/server/cli.py", Is::File(b"'cli'")),
            ("usr/local/lib/python3.12/site-packages/other.py", Is::File(b"'other'")),
            ("usr/local/lib/python3.12/runpy.py", Is::File(b"'runpy'")),
            ("usr/local/lib64/python3.12/far.cpython-312-x86_64-linux-gnu.so", Is::File(b"far, compiled")),
            ("usr/local/lib64/python3.12/far.py", Is::File(b"if __name__ == '__main__':\n    import near")),
            ("usr/local/lib64/python3.12/near.py", Is::File(b"'near'")),
            ("bin/sh", Is::File(b"shell")),
            ("work/job.py", Is::File(b"'job'")),
            ("work/app/wsgi.py", Is::File(b"'wsgi'")),
            ("path/extra.py", Is::File(b"'extra'")),
            ("python3.12", Is::File(b"no directory above")),
        ])
    };
    for (command, want) in [
        (r#"["/venv/bin/python","-m","server"]"#, vec!["python", "'runpy'", "'server'", "'server.main'"]),
        (
            r#"["/venv/bin/serve","app.wsgi:application","http://x:80"]"#,
            vec![
                "#!/venv/bin/python\nfrom server.cli import main\n",
                "python",
                "'server'",
                "'cli'",
                "'runpy'",
                "'wsgi'",
            ],
        ),
        (r#"["python3.12","-m","other"]"#, vec!["python", "'runpy'", "'other'"]),
        (r#"["python3.12","-m","extra"]"#, vec!["python", "'runpy'", "'extra'"]),
        (r#"["python3.12","-m","server"]"#, vec!["python", "'runpy'"]),
        (r#"["python3.12","-m","far"]"#, vec!["python", "'runpy'", "far, compiled", "'near'"]),
        (r#"["python3.12","-m","../etc/passwd"]"#, vec!["python"]),
        (r#"["/python3.12","-m","other"]"#, vec!["no directory above", "'other'"]),
        (r#"["/bin/sh","-c","exec python3.12 -u job.py"]"#, vec!["shell", "python", "'job'"]),
        (r#"["/bin/sh","-c","exec python3.12 -m app.wsgi"]"#, vec!["shell", "python", "'runpy'", "'wsgi'"]),
    ] {
        let config = format!(
            r#"{{"config":{{"Cmd":{command},"WorkingDir":"/work","Env":["PYTHONPATH=../path","PATH=/usr/local/bin"]}}}}"#
        );
        let found = wanted(vec![files()], &config);
        let found: Vec<String> = found.iter().map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned()).collect();
        assert_eq!(found, want, "{command}");
    }
}

#[test]
fn sources_that_name_everything_cost_little() {
    // Each names all others, and many more; under many names.
    let names: Vec<String> = (0..300).map(|n| format!("m{n}")).collect();
    let all = format!("from . import {}{}", names.join(","), ",a,b.c.d".repeat(20_000));
    let paths: Vec<String> = names.iter().map(|name| format!("app/{name}.py")).collect();
    let mut entries = vec![("usr/bin/python3.11", Is::File(b"python")), ("app/x", Is::Link("."))];
    entries.extend(paths.iter().map(|path| (path.as_str(), Is::File(all.as_bytes()))));
    let script = format!("import m0\nimport {}m1\n{}", "x.".repeat(100), "'/app/m2.py'".repeat(20_000));
    entries.push(("app/main.py", Is::File(script.as_bytes())));
    let (bytes, tree) = layer(&entries);
    let mut contents = Bytes { layers: vec![bytes], fails: false, reads: 0 };
    let config = br#"{"config":{"Cmd":["python3.11","/app/main.py"]}}"#;
    let found = needed(&Stack::new(vec![Some(tree)]), &Command::of_config(config), &mut contents);
    assert!(found.len() >= 300, "{}", found.len());
    // Each file once to see what it is, and once for what it imports.
    assert!(contents.reads <= 2 * paths.len() + 10, "{} reads", contents.reads);
}
