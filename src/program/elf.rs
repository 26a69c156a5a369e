//! What an ELF file is linked with (System V ABI, chapter 5; `ld.so(8)` for where libraries are looked for).

use std::cell::RefCell;
use std::io::{self, Read, Seek, SeekFrom};

use object::elf::{
    DT_NEEDED, DT_RPATH, DT_RUNPATH, DT_STRSZ, DT_STRTAB, EM_AARCH64, EM_X86_64, FileHeader64, PF_W, PT_LOAD,
};
use object::read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _};
use object::{Endianness, ReadCache, ReadRef};

use super::{Command, Contents, Facts, Place, Stack, part};
use crate::units::{LayerRange, u64_from_usize};

/// Most bytes of one file that are read for this: headers, the dynamic section and its strings.
const MAX_READ_BYTES: u64 = 32 << 20;
/// Most reads of one file: each may take a whole span.
const MAX_READS: u32 = 64;
/// Longest list of entries of the dynamic section, and longest table of strings, that are believed.
const MAX_DYNAMIC_BYTES: u64 = 1 << 20;
const MAX_STRINGS_BYTES: u64 = 16 << 20;
/// How much around the first instruction.
const ENTRY_BYTES: u64 = 64 << 10;

/// Where libraries are looked for at last, whichever machine they are for.
const LIBRARY_DIRS: [&str; 5] = ["lib64", "usr/lib64", "lib", "usr/lib", "usr/local/lib"];

/// What the file refers to. Nothing of one that makes no sense, or is for 32 bits.
pub(super) fn facts(
    place: &Place,
    data: LayerRange,
    command: &Command,
    contents: &mut dyn Contents,
    stack: &Stack,
) -> io::Result<Facts> {
    let trouble = RefCell::new(None);
    let reader =
        FileReader { contents, layer: place.layer, data, at: 0, left: (MAX_READS, MAX_READ_BYTES), trouble: &trouble };
    let linked = linked(&ReadCache::new(reader)).unwrap_or_default();
    if let Some(error) = trouble.into_inner() {
        return Err(error);
    }
    let mut dirs: Vec<Vec<u8>> = linked.paths.iter().map(|dir| with_origin(dir, &place.dir)).collect();
    dirs.extend(command.library_dirs().map(<[u8]>::to_vec));
    dirs.extend(
        linked.machine_dir.iter().flat_map(|dir| ["lib", "usr/lib"].map(|of| format!("{of}/{dir}").into_bytes())),
    );
    dirs.extend(LIBRARY_DIRS.map(|dir| dir.as_bytes().to_vec()));
    let find = |name: Vec<u8>| {
        if name.contains(&b'/') {
            return Some(name);
        }
        let mut paths = dirs.iter().map(|dir| [dir, &b"/"[..], &name].concat());
        paths.find(|path| stack.file(path).is_some())
    };
    let files = linked.interpreter.into_iter().chain(linked.needed.into_iter().filter_map(find)).collect();
    Ok(Facts { files, parts: linked.parts })
}

#[derive(Default)]
struct Linked {
    interpreter: Option<Vec<u8>>,
    needed: Vec<Vec<u8>>,
    /// Of `DT_RUNPATH` and `DT_RPATH`.
    paths: Vec<Vec<u8>>,
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
        _ => None,
    };
    let mut linked = Linked { machine_dir, ..Linked::default() };
    let writable = loads().filter(|load| load.p_flags(endian).contains(PF_W));
    linked.parts.extend(writable.map(|load| (load.p_offset(endian), load.p_filesz(endian))));
    linked.parts.extend(offset_of(header.e_entry(endian)).map(|at| (at, ENTRY_BYTES)));
    let mut entries: &[object::elf::Dyn64<Endianness>] = &[];
    for segment in segments {
        if let Ok(Some(path)) = segment.interpreter(endian, file) {
            linked.interpreter = Some(path.to_vec());
        }
        if segment.p_filesz(endian) <= MAX_DYNAMIC_BYTES
            && let Ok(Some(found)) = segment.dynamic(endian, file)
        {
            entries = found;
        }
    }
    let values = |tag| entries.iter().filter(move |entry| entry.d_tag(endian) == tag).map(|entry| entry.d_val(endian));
    let Some((at, len)) = values(DT_STRTAB).next().and_then(offset_of).zip(values(DT_STRSZ).next()) else {
        return Some(linked);
    };
    if len > MAX_STRINGS_BYTES {
        return Some(linked);
    }
    let strings = file.read_bytes_at(at, len).ok()?;
    let string = |at: u64| {
        let rest = strings.get(usize::try_from(at).ok()?..)?;
        rest.split(|byte| *byte == 0).next().filter(|name| !name.is_empty()).map(<[u8]>::to_vec)
    };
    linked.needed = values(DT_NEEDED).filter_map(string).collect();
    let lists = values(DT_RUNPATH).chain(values(DT_RPATH)).filter_map(string);
    linked.paths =
        lists.flat_map(|list| list.split(|byte| *byte == b':').map(<[u8]>::to_vec).collect::<Vec<_>>()).collect();
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

/// A file of a layer, as `object` reads files.
struct FileReader<'a> {
    contents: &'a mut dyn Contents,
    layer: usize,
    data: LayerRange,
    at: u64,
    /// Reads and bytes that may still come.
    left: (u32, u64),
    /// Why bytes could not be had: the library keeps no errors.
    trouble: &'a RefCell<Option<io::Error>>,
}

impl Read for FileReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(range) = part(self.data, self.at, u64_from_usize(buffer.len())) else { return Ok(0) };
        let (reads, bytes) = self.left;
        let left = reads.checked_sub(1).zip(bytes.checked_sub(range.len_bytes()));
        self.left = left.ok_or(io::ErrorKind::FileTooLarge)?;
        let bytes = match self.contents.read(self.layer, range) {
            Ok(bytes) => bytes,
            Err(error) => {
                let kind = error.kind();
                *self.trouble.borrow_mut() = Some(error);
                return Err(kind.into());
            }
        };
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
