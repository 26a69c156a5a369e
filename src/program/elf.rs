//! What an ELF file is linked with (System V ABI, chapter 5; `ld.so(8)` for where libraries are looked for).

use std::cell::Cell;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use object::elf::{
    DT_NEEDED, DT_RPATH, DT_RUNPATH, DT_STRSZ, DT_STRTAB, EM_AARCH64, EM_PPC64, EM_RISCV, EM_S390, EM_X86_64,
    FileHeader64, PF_W, PT_LOAD,
};
use object::read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _};
use object::{Endianness, ReadCache, ReadRef};

use super::{Command, Contents, Facts, MAX_DIRS, MAX_FILES, MAX_PATH_BYTES, Place, Stack, join, part};
use crate::units::{LayerRange, u64_from_usize};

/// Most bytes of one file that are read for this: headers, the dynamic section and its strings.
const MAX_READ_BYTES: u64 = 32 << 20;
/// Most reads of one file: each may take a whole span.
const MAX_READS: u32 = 64;
/// Longest single read: the table of strings of a large library. The reader takes memory for as much as a header claims.
const MAX_PIECE_BYTES: u64 = 16 << 20;
/// Parts of a file that are written to: a program has one or two.
const MAX_PARTS: usize = 16;
/// How much around the first instruction.
const ENTRY_BYTES: u64 = 64 << 10;

/// Where libraries are looked for at last, whichever machine they are for.
const LIBRARY_DIRS: [&str; 5] = ["lib64", "usr/lib64", "lib", "usr/lib", "usr/local/lib"];

/// What the file refers to. Nothing of one that makes no sense, is for 32 bits, or cannot be had.
pub(super) fn facts(
    place: &Place,
    data: LayerRange,
    command: &Command,
    contents: &mut dyn Contents,
    stack: &Stack,
) -> Facts {
    let cache = ReadCache::new(FileReader { contents, layer: place.layer, data, at: 0 });
    let left = Cell::new((MAX_READS, MAX_READ_BYTES));
    let linked = linked(Bounded { file: &cache, left: &left }).unwrap_or_default();
    let own = |dirs: &[Vec<u8>]| dirs.iter().map(|dir| with_origin(dir, &place.dir)).collect::<Vec<_>>();
    // The older of the two is looked into before the environment, and only where there is no newer one.
    let mut dirs = if linked.run_path.is_empty() { own(&linked.rpath) } else { Vec::new() };
    dirs.extend(command.library_dirs().map(<[u8]>::to_vec));
    dirs.extend(own(&linked.run_path));
    dirs.extend(
        linked.machine_dir.iter().flat_map(|dir| ["lib", "usr/lib"].map(|of| format!("{of}/{dir}").into_bytes())),
    );
    dirs.extend(LIBRARY_DIRS.map(|dir| dir.as_bytes().to_vec()));
    let find = |name: Vec<u8>| {
        if name.contains(&b'/') {
            return Some(name);
        }
        let mut paths = dirs.iter().map(|dir| join(dir, &name));
        paths.find(|path| stack.file(path).is_some())
    };
    let files = linked.interpreter.into_iter().chain(linked.needed.into_iter().filter_map(find)).collect();
    Facts { files, modules: Vec::new(), parts: linked.parts }
}

#[derive(Default)]
struct Linked {
    interpreter: Option<Vec<u8>>,
    needed: Vec<Vec<u8>>,
    run_path: Vec<Vec<u8>>,
    rpath: Vec<Vec<u8>>,
    /// What Debian calls the directories of this machine's libraries.
    machine_dir: Option<&'static str>,
    /// What is read at the start: data that are relocated, and the first instructions.
    parts: Vec<(u64, u64)>,
}

fn linked<'a, R: ReadRef<'a>>(file: R) -> Option<Linked> {
    let header = FileHeader64::<Endianness>::parse(file).ok()?;
    let endian = header.endian().ok()?;
    let segments = header.program_headers(endian, file).ok()?;
    let loads = || segments.iter().filter(|segment| segment.p_type(endian) == PT_LOAD);
    // Where in the file an address is.
    let offset_of = |address: u64| {
        loads().find_map(|load| {
            let inside = address.checked_sub(load.p_vaddr(endian)).filter(|inside| *inside < load.p_filesz(endian))?;
            load.p_offset(endian).checked_add(inside)
        })
    };
    let machine_dir = match header.e_machine(endian) {
        EM_X86_64 => Some("x86_64-linux-gnu"),
        EM_AARCH64 => Some("aarch64-linux-gnu"),
        EM_PPC64 => Some("powerpc64le-linux-gnu"),
        EM_RISCV => Some("riscv64-linux-gnu"),
        EM_S390 => Some("s390x-linux-gnu"),
        _ => None,
    };
    let mut linked = Linked { machine_dir, ..Linked::default() };
    let writable = loads().filter(|load| load.p_flags(endian).contains(PF_W));
    linked.parts.extend(writable.take(MAX_PARTS).map(|load| (load.p_offset(endian), load.p_filesz(endian))));
    linked.parts.extend(offset_of(header.e_entry(endian)).map(|at| (at, ENTRY_BYTES)));
    let mut entries: &[object::elf::Dyn64<Endianness>] = &[];
    for segment in segments {
        if let Ok(Some(path)) = segment.interpreter(endian, file)
            && path.len() <= MAX_PATH_BYTES
        {
            linked.interpreter = Some(path.to_vec());
        }
        if let Ok(Some(found)) = segment.dynamic(endian, file) {
            entries = found;
        }
    }
    let values = |tag| entries.iter().filter(move |entry| entry.d_tag(endian) == tag).map(|entry| entry.d_val(endian));
    let Some((at, len)) = values(DT_STRTAB).next().and_then(offset_of).zip(values(DT_STRSZ).next()) else {
        return Some(linked);
    };
    let Ok(strings) = file.read_bytes_at(at, len) else { return Some(linked) };
    let string = |at: u64| {
        let rest = strings.get(usize::try_from(at).ok()?..)?;
        let rest = rest.get(..MAX_PATH_BYTES).unwrap_or(rest);
        rest.split(|byte| *byte == 0).next().filter(|name| !name.is_empty())
    };
    linked.needed = values(DT_NEEDED).filter_map(string).take(MAX_FILES).map(<[u8]>::to_vec).collect();
    let dirs = |tag| {
        let lists = values(tag).filter_map(string);
        lists.flat_map(|list| list.split(|byte| *byte == b':')).take(MAX_DIRS).map(<[u8]>::to_vec).collect()
    };
    (linked.run_path, linked.rpath) = (dirs(DT_RUNPATH), dirs(DT_RPATH));
    Some(linked)
}

/// A directory in which `$ORIGIN` stands for that of the file.
fn with_origin(dir: &[u8], origin: &[u8]) -> Vec<u8> {
    for name in [&b"$ORIGIN"[..], b"${ORIGIN}"] {
        if let Some(rest) = dir.strip_prefix(name) {
            return [origin, rest].concat();
        }
    }
    dir.to_vec()
}

/// Refuses what is too much, before memory is taken for it.
#[derive(Clone, Copy)]
struct Bounded<'l, R> {
    file: R,
    /// Reads and bytes that may still come.
    left: &'l Cell<(u32, u64)>,
}

impl<R> Bounded<'_, R> {
    fn pay(&self, bytes: u64) -> Result<(), ()> {
        let (reads, left) = self.left.get();
        let rest = reads.checked_sub(1).zip(left.checked_sub(bytes)).filter(|_| bytes <= MAX_PIECE_BYTES);
        self.left.set(rest.ok_or(())?);
        Ok(())
    }
}

impl<'a, R: ReadRef<'a>> ReadRef<'a> for Bounded<'_, R> {
    fn len(self) -> Result<u64, ()> {
        self.file.len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'a [u8], ()> {
        self.pay(size)?;
        self.file.read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'a [u8], ()> {
        self.pay(range.end.saturating_sub(range.start))?;
        self.file.read_bytes_at_until(range, delimiter)
    }
}

/// A file of a layer, as `object` reads files.
struct FileReader<'a> {
    contents: &'a mut dyn Contents,
    layer: usize,
    data: LayerRange,
    at: u64,
}

impl Read for FileReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(range) = part(self.data, self.at, u64_from_usize(buffer.len())) else { return Ok(0) };
        let bytes = self.contents.read(self.layer, range)?;
        let len = bytes.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(&bytes) {
            *to = *from;
        }
        self.at += u64_from_usize(len);
        Ok(len)
    }
}

impl Seek for FileReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.data.len_bytes().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
