//! Layers of many small files, and their zTOCs.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use flate2::Compression as Level;
use flate2::write::GzEncoder;
use sociblk::soci::build::{BuildOptions, ZtocBuilder};
use sociblk::spans::Compression;

const FILES_IN_A_DIRECTORY: usize = 16;

/// Takes a blob and indexes it.
struct Indexed {
    builder: ZtocBuilder,
    copy: Option<BufWriter<File>>,
}

impl Write for Indexed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.builder.push(bytes, &mut |_| Ok(())).map_err(io::Error::other)?;
        if let Some(copy) = &mut self.copy {
            copy.write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The zTOC of a layer with names, sizes and kinds as in one of many small packages: sixteen files a directory, one in 50
/// a symbolic link, one in 200 a hard link. `copy` gets the blob.
pub fn make(files: usize, mean_bytes: u64, compression: Compression, copy: Option<&Path>) -> io::Result<Vec<u8>> {
    let builder = ZtocBuilder::new(BuildOptions::default(), compression).map_err(io::Error::other)?;
    let copy = copy.map(File::create).transpose()?.map(BufWriter::new);
    let indexed = Indexed { builder, copy };
    let indexed = match compression {
        // The fastest level makes blocks without end, and so no spans.
        Compression::Gzip => pack(files, mean_bytes, GzEncoder::new(indexed, Level::new(3)))?.finish()?,
        Compression::Uncompressed => pack(files, mean_bytes, indexed)?,
        Compression::Zstd => return Err(io::ErrorKind::Unsupported.into()),
    };
    if let Some(mut copy) = indexed.copy {
        copy.flush()?;
    }
    Ok(indexed.builder.finish(&mut |_| Ok(())).map_err(io::Error::other)?.ztoc)
}

fn pack<W: Write>(files: usize, mean_bytes: u64, blob: W) -> io::Result<W> {
    let mut tar = tar::Builder::new(blob);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let text: Vec<u8> = (0..1 << 20).map(|_| b"etaoin shrdlu\ncmfw"[(random() % 18) as usize]).collect();
    let mut header = tar::Header::new_gnu();
    header.set_mtime(1_700_000_000);
    let mut last = String::new();
    for i in 0..files {
        let (package, module) = (i / FILES_IN_A_DIRECTORY / 8, i / FILES_IN_A_DIRECTORY);
        let dir = format!("usr/lib/python3/dist-packages/package_{package:05}/module_{module:06}");
        if i % FILES_IN_A_DIRECTORY == 0 {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            tar.append_data(&mut header, format!("{dir}/"), io::empty())?;
        }
        let name = format!("{dir}/implementation_{i:07}.py");
        header.set_mode(0o644);
        header.set_size(0);
        if i % 200 == 199 {
            header.set_entry_type(tar::EntryType::Link);
            tar.append_link(&mut header, &name, &last)?;
        } else if i % 50 == 49 {
            header.set_entry_type(tar::EntryType::Symlink);
            tar.append_link(&mut header, &name, format!("implementation_{:07}.py", i - 1))?;
        } else {
            // Skewed as real sizes are: most are far below the mean, a few far above.
            let (a, b) = (random() % 1000, random() % 1000);
            let size = (mean_bytes * a * a * b / 1000 / 1000 / 1000 * 6) as usize % (text.len() / 2);
            let from = random() as usize % (text.len() / 2);
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(size as u64);
            tar.append_data(&mut header, &name, &text[from..from + size])?;
            last = name;
        }
    }
    tar.into_inner()
}
