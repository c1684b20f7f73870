//! The floor: the work that every agent must do. Reads the file, finds the lines, compresses with zstd level 1.

use crate::world::cpu_seconds;
use anyhow::Result;
use std::{
    fs::File,
    io::{Read, Write},
    path::Path,
};

/// Cost of the floor.
pub(crate) struct Floor {
    pub(crate) lines: u64,
    pub(crate) compressed: u64,
    pub(crate) cpu_seconds: f64,
}

/// Size of a block, which is compressed by itself. The agent's batches have up to 8 MiB.
const BLOCK_BYTES: usize = 1 << 20;

pub(crate) fn floor(path: &Path) -> Result<Floor> {
    let before = cpu_seconds(std::process::id())?;
    let (mut file, mut block) = (File::open(path)?, vec![0; BLOCK_BYTES]);
    let (mut lines, mut compressed) = (0, 0);
    loop {
        let mut filled = 0;
        while filled < block.len() {
            let got = file.read(&mut block[filled..])?;
            if got == 0 {
                break;
            }
            filled += got;
        }
        if filled == 0 {
            break;
        }
        lines += memchr::memchr_iter(b'\n', &block[..filled]).count() as u64;
        let mut encoder = zstd::stream::Encoder::new(Vec::with_capacity(BLOCK_BYTES / 4), 1)?;
        encoder.write_all(&block[..filled])?;
        compressed += encoder.finish()?.len() as u64;
    }
    Ok(Floor { lines, compressed, cpu_seconds: cpu_seconds(std::process::id())? - before })
}
