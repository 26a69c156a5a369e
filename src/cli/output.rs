//! Printing: errors, tables, sizes.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::io::Write;

/// Prints an error and its causes as one line on stderr.
pub fn print_error(error: &anyhow::Error) {
    eprintln!("sociblk: {}", crate::node::one_line(error));
}

/// Prints on stderr what a user should know of what is done nevertheless.
pub fn note(text: &str) {
    eprintln!("sociblk: note: {text}");
}

/// Prints a line on stdout. A closed pipe (`| head`) is no error worth a panic.
pub fn line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints a value as indented JSON.
pub fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    line(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Prints rows under headings, columns padded to their widest cell.
pub fn table(head: &[&str], rows: &[Vec<String>]) {
    let mut width: Vec<usize> = head.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (w, cell) in width.iter_mut().zip(row) {
            *w = (*w).max(cell.chars().count());
        }
    }
    let print_row = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&width).map(|(cell, w)| format!("{cell:<w$}")).collect();
        line(padded.join("  ").trim_end());
    };
    print_row(&mut head.iter().copied());
    for row in rows {
        print_row(&mut row.iter().map(String::as_str));
    }
}

/// A byte count for people: `17 B`, `4.0 MiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut scaled = bytes as f64;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{scaled:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        for (bytes, want) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (4 << 20, "4.0 MiB"), (3 << 40, "3.0 TiB")]
        {
            assert_eq!(size(bytes), want);
        }
    }
}
