"""Determine the kind of a file from its name, which selects its parser."""

TEXT = "text"

_READ = {
    "text": "txt text log rst org adoc asciidoc tex bib srt vtt nfo po diff patch",
    "markdown": "md markdown mdown mkd mdx qmd rmd",
    "csv": "csv tsv tab",
    "jsonl": "jsonl ndjson",
    "json": "json geojson ipynb webmanifest",
    "code": (
        "py pyi pyx js mjs cjs jsx ts mts cts tsx vue svelte c h cc cpp cxx hh hpp hxx m mm swift java kt kts scala "
        "groovy clj cljs cs fs fsx vb go rs zig nim d rb erb php pl pm lua r jl hs elm ml mli ex exs erl hrl lisp el "
        "scm rkt sh bash zsh fish ps1 bat cmd awk sed sql graphql proto thrift cmake mk make gradle bzl nix tf hcl "
        "css scss sass less xml xsd xsl xslt svg plist yaml yml toml ini cfg conf properties env asm s v sv vhd vhdl "
        "f f90 f95 for pas dart sol metal cu cuh glsl hlsl wgsl"
    ),
    "html": "html htm xhtml xht",
    "pdf": "pdf",
    "docx": "docx docm dotx dotm",
    "pptx": "pptx pptm ppsx ppsm potx potm",
    "xlsx": "xlsx xlsm xltx xltm",
    "odt": "odt ott",
    "epub": "epub",
    "mail": "eml emlx",
    "mbox": "mbox mbx",
}
DOCUMENT_KINDS = tuple(kind for kind in _READ if kind != "mbox")  # the documents of a mailbox are mails
_NOT_READ = (
    # images, sound, films
    "png jpg jpeg jpe gif bmp tif tiff webp avif heic heif ico icns psd ai eps raw cr2 cr3 nef arw dng xcf sketch fig "
    "mp3 m4a aac flac wav aif aiff ogg opus wma mid mp4 m4v mov avi mkv webm wmv flv mpg mpeg "
    # archives and disk images
    "zip tar gz tgz bz2 tbz xz txz zst 7z rar jar war whl egg deb rpm dmg iso img pkg xpi crx apk ipa cab lz4 br "
    # programs and libraries
    "exe dll so dylib a o obj lib class pyc pyo pyd wasm bin elf ko sys msi com node "
    # fonts, data, models
    "ttf otf woff woff2 eot sqlite sqlite3 db db3 mdb accdb parquet feather arrow orc avro npy npz pkl pickle pt pth "
    "onnx safetensors gguf h5 hdf5 mat rdata rds joblib ckpt pb tflite mlmodel "
    # documents without a parser
    "doc xls ppt dot xlsb rtf odp ods odg pages numbers key pub vsd vsdx one msg pst mobi azw azw3 djvu ps xps "
    # secrets, and files that are useless as text
    "p12 pfx keychain kdbx gpg pgp swp swo lock lnk part crdownload"
)
_NAMED = {"makefile": "code", "dockerfile": "code", "rakefile": "code", "gemfile": "code", "jenkinsfile": "code"}

_KIND_OF = {suffix: kind for kind, suffixes in _READ.items() for suffix in suffixes.split()} | _NAMED
_WITHOUT_READER = frozenset(_NOT_READ.split())

_TEXT_FORMATS = {"markdown": "markdown", "code": "code", "json": "code"}


def kind_of(name: str) -> str | None:
    """Return the kind of a file by its name: `text` if the extension is unknown, None if it cannot be read."""
    suffix = suffix_of(name)
    if suffix in _WITHOUT_READER:
        return None
    return _KIND_OF.get(suffix) or _KIND_OF.get(name.lower(), TEXT)


def suffix_of(name: str) -> str:
    """Return the lowercase extension of a file name; empty if there is none, or for names such as `.bashrc`."""
    stem, dot, suffix = name.rpartition(".")
    return suffix.lower() if dot and stem else ""


def text_format_of(kind: str) -> str:
    """Return the markup of a line-based file, which determines its headings."""
    return _TEXT_FORMATS.get(kind, "text")
