//! What a Python source says that it imports, read as text.
//!
//! Statements are told apart as Python's tokenizer does it (The Python Language Reference, 2.1: lines are joined within
//! brackets, by a backslash and by strings in triple quotes); of what they mean only `import` and `from` are understood.

/// A module that is imported.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Import {
    /// How many dots stand before the name: from so many packages up; none: on the search path.
    pub level: usize,
    /// Its name, without the dots; empty for `from . import x`.
    pub module: String,
    /// What is imported from it, which may be modules, too.
    pub names: Vec<String>,
}

/// Longest name of a module.
const MAX_NAME_BYTES: usize = 256;
/// Most names in imports of one source.
const MAX_NAMES: usize = 4096;

/// The imports that run when the source is loaded, in order: not those of functions, nor of blocks that only
/// type checkers, Windows or, where it is not what `is_main`, direct runs of the source enter.
pub(super) fn imports(source: &str, is_main: bool) -> Vec<Import> {
    let (mut found, mut left) = (Vec::new(), MAX_NAMES);
    // What stands deeper than this is passed over.
    let mut shallow = None;
    for Statement { indent, text } in statements(source) {
        if shallow.is_some_and(|shallow| indent > shallow) {
            continue;
        }
        shallow = is_passed_over(&text, is_main).then_some(indent);
        let block = ["try:", "else:", "finally:"].iter().find_map(|head| text.strip_prefix(head));
        block.unwrap_or(&text).split(';').for_each(|part| import(part.trim(), &mut found, &mut left));
        if left == 0 {
            break;
        }
    }
    found
}

/// A dotted name; `None` for what cannot be one.
pub(super) fn module(name: &str) -> Option<String> {
    let is_part = |part: &str| !part.is_empty() && part.chars().all(|c| c == '_' || c.is_alphanumeric());
    (name.len() <= MAX_NAME_BYTES && name.split('.').all(is_part)).then(|| name.to_owned())
}

/// Strings of a source that may be paths of files, since they begin with `/`.
pub(super) fn paths(source: &str) -> impl Iterator<Item = &str> {
    let lines = source.lines().filter(|line| !line.trim_start().starts_with('#'));
    let strings = lines.flat_map(|line| line.split(['"', '\'']).skip(1).step_by(2));
    strings.filter(|text| text.len() > 1 && text.starts_with('/'))
}

/// Whether the block that a statement opens does not run when a module is loaded. In doubt it does.
fn is_passed_over(text: &str, is_main: bool) -> bool {
    match text.split_ascii_whitespace().next() {
        Some("def" | "async") => true,
        Some("if" | "elif") => {
            let is_plain = !["!=", "not ", " or "].iter().any(|word| text.contains(word));
            let never = text.contains("TYPE_CHECKING") || text.contains("win32");
            is_plain && (never || (!is_main && text.contains("__name__")))
        }
        _ => false,
    }
}

/// What a statement imports, of no more than so many names. `as` and what stands behind it is not looked at.
fn import(statement: &str, found: &mut Vec<Import>, left: &mut usize) {
    let names = |list: &str, left: &mut usize| -> Vec<String> {
        let words = list.split([',', '(', ')']).filter_map(|part| part.split_ascii_whitespace().next());
        let names: Vec<String> = words.filter_map(module).take(*left).collect();
        *left -= names.len();
        names
    };
    match statement.split_once(|c: char| c.is_ascii_whitespace()) {
        Some(("import", list)) => {
            let modules = names(list, left).into_iter();
            found.extend(modules.map(|module| Import { level: 0, module, names: Vec::new() }));
        }
        Some(("from", rest)) => {
            let Some((from, list)) = rest.trim_start().split_once(|c: char| c.is_ascii_whitespace()) else { return };
            let name = from.trim_start_matches('.');
            let level = from.len() - name.len();
            let (module, list) = match name {
                // As in `from .import x`.
                "import" if level > 0 => (Some(String::new()), Some(list)),
                "" => (Some(String::new()), list.trim_start().strip_prefix("import")),
                name => (module(name), list.trim_start().strip_prefix("import")),
            };
            let (Some(module), Some(list), true) = (module, list, *left > 0) else { return };
            *left -= 1;
            found.push(Import { level, module, names: names(list, left) });
        }
        _ => {}
    }
}

/// A statement, or the head of a block.
struct Statement {
    /// Columns of white space before it.
    indent: usize,
    /// Its text in one line, without comments.
    text: String,
}

/// The statements of a source. Those with a string in triple quotes are kept without what is in it.
fn statements(source: &str) -> impl Iterator<Item = Statement> + '_ {
    let mut rest = source;
    std::iter::from_fn(move || {
        loop {
            let line = rest.trim_start_matches(['\n', '\r']);
            let body = line.trim_start_matches([' ', '\t', '\x0c']);
            if body.is_empty() {
                return None;
            }
            let (text, behind) = logical_line(body);
            rest = behind;
            if !text.trim().is_empty() {
                return Some(Statement { indent: line.len() - body.len(), text });
            }
        }
    })
}

/// A line with those that it is joined with, and what comes behind.
fn logical_line(source: &str) -> (String, &str) {
    let mut text = String::new();
    let mut depth = 0_usize;
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let behind = rest.get(c.len_utf8()..).unwrap_or_default();
        match c {
            '#' => {
                rest = rest.find('\n').and_then(|end| rest.get(end..)).unwrap_or_default();
                continue;
            }
            '"' | '\'' => {
                let (string, behind) = string(rest);
                text.push_str(string);
                rest = behind;
                continue;
            }
            '\\' if behind.starts_with(['\n', '\r']) => {
                text.push(' ');
                rest = behind.strip_prefix("\r\n").or_else(|| behind.get(1..)).unwrap_or_default();
                continue;
            }
            '\n' if depth == 0 => return (text, behind),
            '\n' => text.push(' '),
            '(' | '[' | '{' => {
                depth += 1;
                text.push(c);
            }
            ')' | ']' | '}' => {
                depth = depth.saturating_sub(1);
                text.push(c);
            }
            c => text.push(c),
        }
        rest = behind;
    }
    (text, "")
}

/// A string that begins here, if it ends in its line, else nothing in its place; and what comes behind.
fn string(source: &str) -> (&str, &str) {
    let quote = source.get(..1).unwrap_or_default();
    let triple = source.get(..3).filter(|three| three.bytes().all(|byte| quote.as_bytes() == [byte]));
    let opening = triple.unwrap_or(quote);
    let mut at = opening.len();
    while let Some(rest) = source.get(at..) {
        if rest.starts_with(opening) {
            let end = at + opening.len();
            let shown = if triple.is_some() { "" } else { source.get(..end).unwrap_or_default() };
            return (shown, source.get(end..).unwrap_or_default());
        }
        let Some(c) = rest.chars().next() else { break };
        if c == '\n' && triple.is_none() {
            // It does not end; the line does.
            return ("", rest);
        }
        at += c.len_utf8();
        if c == '\\' {
            at += rest.chars().nth(1).map_or(0, char::len_utf8);
        }
    }
    ("", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written as Python would.
    fn said(imports: &[Import]) -> Vec<String> {
        let one = |Import { level, module, names }: &Import| {
            format!("{}{module} {}", ".".repeat(*level), names.join(",")).trim_end().to_owned()
        };
        imports.iter().map(one).collect()
    }

    #[test]
    fn imports_of_a_module_are_those_that_run_when_it_is_loaded() {
        for (source, want) in [
            ("import a, b.c as d\nimport e;import f", vec!["a", "b.c", "e", "f"]),
            ("from a import b as c, d\nfrom . import e\nfrom ..f.g import *", vec!["a b,d", ". e", "..f.g"]),
            ("from .a import (b, # one\n    c as d,\n)\nimport e", vec![".a b,c", "e"]),
            ("import a, \\\n  b", vec!["a", "b"]),
            ("try:\n    import a\nexcept ImportError:\n    import b\n", vec!["a", "b"]),
            ("def f():\n    import a\n\n    import b\nimport c", vec!["c"]),
            ("class C:\n    import a\n    def f():\n        import b\nimport c", vec!["a", "c"]),
            ("async def f():\n\timport a\nimport b", vec!["b"]),
            ("if TYPE_CHECKING:\n    import a\nelse:\n    import b", vec!["b"]),
            ("if not TYPE_CHECKING:\n    import a\nif x or TYPE_CHECKING:\n    import b", vec!["a", "b"]),
            ("if sys.platform != 'win32':\n    import a", vec!["a"]),
            ("try: import a\nexcept E: pass\nelse: import b", vec!["a", "b"]),
            ("from .import a, b", vec![". a,b"]),
            ("if sys.platform == 'win32':\n    import a\nelif x:\n    import b", vec!["b"]),
            ("if __name__ == '__main__':\n    import a\n", vec![]),
            ("\"\"\"Says:\nimport a\n\"\"\"\nimport b", vec!["b"]),
            ("x = '''\nimport a\n''' + \"import b\"\nimport c", vec!["c"]),
            ("x = 'it\\'s'; import a", vec!["a"]),
            ("x = 'open\nimport a", vec!["a"]),
            ("f(\nimport a\n)\nimport b", vec!["b"]),
            ("x = [1,\n2]\r\nimport a\r\nimport b", vec!["a", "b"]),
            ("# import a\nimport b # import c", vec!["b"]),
            ("important = 1\nfromage = 2\nimport\nfrom\nfrom x\nimport 1+1, ../x, a..b", vec![]),
            ("from importlib import import_module", vec!["importlib import_module"]),
            ("import über", vec!["über"]),
            ("\"\"\"never ends\nimport a", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(said(&imports(source, false)), want, "{source:?}");
        }
        assert_eq!(said(&imports("if __name__ == '__main__':\n    import a\n", true)), ["a"]);
        for long in ["import a\n".repeat(2 * MAX_NAMES), format!("import {}a", "a,".repeat(2 * MAX_NAMES))] {
            assert_eq!(imports(&long, false).len(), MAX_NAMES);
        }
        let from = imports(&format!("from a import {}b\nimport c", "b,".repeat(2 * MAX_NAMES)), false);
        assert_eq!((from.len(), from.first().map(|import| import.names.len())), (1, Some(MAX_NAMES - 1)));
    }

    #[test]
    fn strings_that_are_absolute_may_be_paths() {
        let source = "open('/a/b') # '/c'\n# open('/d')\nx = \"/e\" + 'f/g' + '/'";
        assert_eq!(paths(source).collect::<Vec<_>>(), ["/a/b", "/c", "/e"]);
    }
}
