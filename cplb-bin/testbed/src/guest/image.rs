//! The initramfs: programs with the libraries they need, and modules, at the paths they have on the host.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufWriter, Write},
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
    process::Command,
};

use cpio::newc;

use super::GuestError;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// Files that programs expect on any system.
const FILES: &[(&str, &str)] = &[
    ("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
    ("/etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    (
        "/etc/nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files dns\nprotocols: files\nservices: files\n",
    ),
    ("/etc/protocols", "ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nvrrp 112 VRRP\nsctp 132 SCTP\n"),
];

/// Mount points, and directories that programs write to.
const DIRECTORIES: &[&str] =
    &["/dev", "/proc", "/sys", "/run", "/tmp", "/root", "/var/lib", "/var/log", "/etc"];

/// The content of an initramfs, sorted so that a directory comes before its entries.
#[derive(Debug, Default)]
pub(super) struct Image {
    entries: BTreeMap<PathBuf, Entry>,
}

#[derive(Debug)]
enum Entry {
    Directory,
    Symlink(PathBuf),
    File { source: PathBuf, mode: u32 },
    Text(String),
}

impl Image {
    pub(super) fn new() -> Self {
        let mut image = Self::default();
        // Where the host has merged its directories, programs refer to their libraries by both paths.
        for merged in ["/bin", "/sbin", "/lib", "/lib64"] {
            if let Ok(target) = fs::read_link(merged) {
                image.entries.insert(merged.into(), Entry::Symlink(target));
            }
        }
        for directory in DIRECTORIES {
            image.directory(Path::new(directory));
        }
        for (path, content) in FILES {
            image.entries.insert((*path).into(), Entry::Text((*content).to_owned()));
        }
        image
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, path: &str, target: &Path) {
        self.entries.insert(path.into(), Entry::Symlink(target.to_owned()));
    }

    /// Adds a small file with this content.
    pub(super) fn text(&mut self, path: &str, content: String) {
        self.directory(Path::new(path).parent().unwrap_or(Path::new("/")));
        self.entries.insert(path.into(), Entry::Text(content));
    }

    /// Adds a file or a whole directory of the host, at the same path, and the libraries that a program needs.
    pub(super) fn add(&mut self, path: &Path) -> Result<(), GuestError> {
        let failed = |source| GuestError::File { path: path.to_owned(), source };
        if fs::metadata(path).map_err(failed)?.is_dir() {
            for entry in fs::read_dir(path).map_err(failed)? {
                self.add(&entry.map_err(failed)?.path())?;
            }
            self.directory(&real_parent(path).map_err(failed)?);
            return Ok(());
        }
        self.file(path).map_err(failed)?;
        for library in libraries(path)? {
            self.file(&library).map_err(|source| GuestError::File { path: library.clone(), source })?;
        }
        Ok(())
    }

    fn file(&mut self, path: &Path) -> io::Result<()> {
        // A link (such as one that chooses among alternatives) becomes the file it points to.
        let source = fs::canonicalize(path)?;
        let place = real_parent(path)?;
        let mode = fs::metadata(&source)?.permissions().mode() & 0o777;
        self.directory(place.parent().unwrap_or(Path::new("/")));
        self.entries.insert(place, Entry::File { source, mode });
        Ok(())
    }

    fn directory(&mut self, path: &Path) {
        for ancestor in path.ancestors().filter(|it| it.components().count() > 1) {
            self.entries.entry(ancestor.to_owned()).or_insert(Entry::Directory);
        }
    }

    /// Writes the archive. It is not compressed: decompressing takes an emulated machine longer than reading.
    pub(super) fn write(&self, to: &Path) -> Result<(), GuestError> {
        let failed = |source| GuestError::File { path: to.to_owned(), source };
        let mut archive = BufWriter::new(File::create(to).map_err(failed)?);
        for (inode, (path, entry)) in (1..).zip(&self.entries) {
            let header = newc::Builder::new(&archived_name(path)).ino(inode).nlink(1);
            entry
                .write(header, &mut archive)
                .map_err(|source| GuestError::File { path: path.clone(), source })?;
        }
        newc::trailer(&mut archive).and_then(Write::flush).map_err(failed)
    }
}

impl Entry {
    fn write(&self, header: newc::Builder, archive: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Directory => header.mode(DIRECTORY | 0o755).write(archive, 0).finish().map(drop),
            Self::Symlink(target) => {
                let target = target.as_os_str().as_encoded_bytes();
                body(header.mode(SYMLINK | 0o777), archive, target.len() as u64, &mut &*target)
            }
            Self::Text(text) => {
                body(header.mode(REGULAR | 0o644), archive, text.len() as u64, &mut text.as_bytes())
            }
            Self::File { source, mode } => {
                let mut file = File::open(source)?;
                let length = file.metadata()?.len();
                body(header.mode(REGULAR | mode), archive, length, &mut file)
            }
        }
    }
}

fn body(
    header: newc::Builder,
    archive: &mut impl Write,
    length: u64,
    content: &mut impl io::Read,
) -> io::Result<()> {
    let length = u32::try_from(length).map_err(|_| io::Error::other("larger than an initramfs takes"))?;
    let mut writer = header.write(archive, length);
    io::copy(content, &mut writer)?;
    writer.finish().map(drop)
}

/// `path` with links resolved in its directories, but not in its last component.
fn real_parent(path: &Path) -> io::Result<PathBuf> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok(fs::canonicalize(parent)?.join(name)),
        _ => Ok(path.to_owned()),
    }
}

fn archived_name(path: &Path) -> String {
    let names = path.components().filter(|part| !matches!(part, Component::RootDir));
    names.collect::<PathBuf>().to_string_lossy().into_owned()
}

/// The shared libraries of a program, by the loader that will load them. Empty for a file that is not a program.
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>, GuestError> {
    let ldd = Command::new("ldd").arg(program).output();
    let ldd = ldd.map_err(|source| GuestError::File { path: "ldd".into(), source })?;
    // `ldd` fails for a script, a data file and a static program.
    if !ldd.status.success() {
        return Ok(BTreeSet::new());
    }
    let text = String::from_utf8_lossy(&ldd.stdout);
    if let Some(missing) = text.lines().find(|line| line.contains("not found")) {
        return Err(GuestError::Library { program: program.to_owned(), library: missing.trim().to_owned() });
    }
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}
