//! The distribution kernel that a guest boots, and its modules.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs, io,
    path::{Path, PathBuf},
};

use super::GuestError;

/// The directory of a kernel that was unpacked elsewhere, which takes precedence.
const VARIABLE: &str = "CPLB_GUEST_KERNEL";

/// An unpacked kernel package: an image and a tree of modules with the index that `depmod` makes.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) image: PathBuf,
    /// `lib/modules/VERSION`.
    modules: PathBuf,
    /// Module file → files that must be loaded before it, in the order of `modules.dep` (the last one first).
    dependencies: BTreeMap<String, Vec<String>>,
}

impl Kernel {
    /// The kernel that `.ci/install test` unpacked, or the one that `CPLB_GUEST_KERNEL` points to.
    pub(super) fn find() -> Result<Self, GuestError> {
        let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest-kernel");
        let root = env::var_os(VARIABLE).map_or(unpacked, PathBuf::from);
        // The guest has the modules at the same paths, without `..` and links.
        let resolved = fs::canonicalize(&root).and_then(|root| Self::in_directory(&root));
        resolved.map_err(|source| GuestError::NoKernel { directory: root, source })
    }

    fn in_directory(root: &Path) -> io::Result<Self> {
        let image = first_entry(&root.join("boot"), |name| name.starts_with("vmlinuz-"))?;
        // Merged file systems have the modules below /usr.
        let modules = first_entry(&root.join("usr/lib/modules"), |_| true)
            .or_else(|_| first_entry(&root.join("lib/modules"), |_| true))?;
        let dependencies = parse(&fs::read_to_string(modules.join("modules.dep"))?);
        Ok(Self { image, modules, dependencies })
    }

    /// The files of these modules and of all they depend on, each after those it depends on. A module that is built
    /// into the kernel has no file.
    pub(super) fn closure<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<PathBuf>, GuestError> {
        let builtin = fs::read_to_string(self.modules.join("modules.builtin")).unwrap_or_default();
        let builtin: BTreeSet<String> = builtin.lines().map(module_name).collect();
        let by_name: BTreeMap<String, &String> =
            self.dependencies.keys().map(|file| (module_name(file), file)).collect();
        let mut order: Vec<&String> = Vec::new();
        for name in names {
            let Some(&file) = by_name.get(name) else {
                if builtin.contains(name) {
                    continue;
                }
                return Err(GuestError::NoModule { name: name.to_owned(), kernel: self.image.clone() });
            };
            for needed in self.dependencies[file].iter().rev().chain([file]) {
                if !order.contains(&needed) {
                    order.push(needed);
                }
            }
        }
        Ok(order.into_iter().map(|file| self.modules.join(file)).collect())
    }
}

/// The name that the kernel shows for a module file.
pub(super) fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    let stem = name.split_once(".ko").map_or(name, |(stem, _)| stem);
    stem.replace('-', "_")
}

/// Lines of `modules.dep`: a file, a colon, and the files it depends on.
fn parse(index: &str) -> BTreeMap<String, Vec<String>> {
    let line = |line: &str| {
        let (file, needed) = line.split_once(':')?;
        Some((file.to_owned(), needed.split_whitespace().map(str::to_owned).collect()))
    };
    index.lines().filter_map(line).collect()
}

fn first_entry(directory: &Path, wanted: impl Fn(&str) -> bool) -> io::Result<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(directory)?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_str().is_some_and(&wanted))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    let nothing = || io::Error::new(io::ErrorKind::NotFound, format!("nothing in {}", directory.display()));
    found.pop().ok_or_else(nothing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closure_orders_modules_after_their_dependencies() {
        let kernel = Kernel {
            image: PathBuf::from("vmlinuz"),
            modules: PathBuf::from("/m"),
            dependencies: parse(
                "kernel/a.ko: kernel/b-b.ko kernel/c.ko\nkernel/b-b.ko: kernel/c.ko\nkernel/c.ko:\n",
            ),
        };
        let files = kernel.closure(["a", "b_b"]).unwrap();
        assert_eq!(files, ["/m/kernel/c.ko", "/m/kernel/b-b.ko", "/m/kernel/a.ko"].map(PathBuf::from));
        assert!(matches!(kernel.closure(["d"]), Err(GuestError::NoModule { .. })));
    }

    #[test]
    fn module_names_follow_the_kernel_spelling() {
        assert_eq!(module_name("kernel/net/x-y.ko.xz"), "x_y");
        assert_eq!(module_name("z.ko"), "z");
    }
}
