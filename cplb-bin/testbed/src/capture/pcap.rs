//! The classic capture file format, in its nanosecond variant.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
    time::SystemTime,
};

use super::Frame;

const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const VERSION: (u16, u16) = (2, 4);
const SNAPLEN: u32 = 262_144;
const LINKTYPE_ETHERNET: u32 = 1;

pub(super) fn write(path: &Path, frames: &[Frame]) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&MAGIC_NANOSECONDS.to_le_bytes())?;
    file.write_all(&VERSION.0.to_le_bytes())?;
    file.write_all(&VERSION.1.to_le_bytes())?;
    // Time zone and accuracy, which readers ignore.
    file.write_all(&[0; 8])?;
    file.write_all(&SNAPLEN.to_le_bytes())?;
    file.write_all(&LINKTYPE_ETHERNET.to_le_bytes())?;
    for frame in frames {
        let time = frame.wall.duration_since(SystemTime::UNIX_EPOCH).map_err(io::Error::other)?;
        let length = u32::try_from(frame.bytes.len()).map_err(io::Error::other)?;
        // Seconds are 32 bits in this format, good until 2106.
        let seconds = u32::try_from(time.as_secs()).map_err(io::Error::other)?;
        for field in [seconds, time.subsec_nanos(), length, length] {
            file.write_all(&field.to_le_bytes())?;
        }
        file.write_all(&frame.bytes)?;
    }
    file.flush()
}
