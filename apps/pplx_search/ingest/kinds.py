"""What a file is, by its name: the kind that chooses its parser."""

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
_NOT_READ = (
    # images, sound, films
    "png jpg jpeg jpe gif bmp tif tiff webp avif heic heif ico icns psd ai eps raw cr2 cr3 nef arw dng xcf sketch fig "
    "mp3 m4a aac flac wav aif aiff ogg opus wma mid mp4 m4v mov avi mkv webm wmv flv mpg mpeg "
    # archives and images of disks
    "zip tar gz tgz bz2 tbz xz txz zst 7z rar jar war whl egg deb rpm dmg iso img pkg xpi crx apk ipa cab lz4 br "
    # programs and their parts
    "exe dll so dylib a o obj lib class pyc pyo pyd wasm bin elf ko sys msi com node "
    # fonts, data, models
    "ttf otf woff woff2 eot sqlite sqlite3 db db3 mdb accdb parquet feather arrow orc avro npy npz pkl pickle pt pth "
    "onnx safetensors gguf h5 hdf5 mat rdata rds joblib ckpt pb tflite mlmodel "
    # documents for which there is no parser
    "doc xls ppt dot xlsb rtf odp ods odg pages numbers key pub vsd vsdx one msg pst mobi azw azw3 djvu ps xps "
    # what is secret or of no use as text
    "p12 pfx keychain kdbx gpg pgp swp swo lock lnk part crdownload"
)
_NAMED = {"makefile": "code", "dockerfile": "code", "rakefile": "code", "gemfile": "code", "jenkinsfile": "code"}

_KIND_OF = {suffix: kind for kind, suffixes in _READ.items() for suffix in suffixes.split()} | _NAMED
_WITHOUT_READER = frozenset(_NOT_READ.split())

_TEXT_FORMATS = {"markdown": "markdown", "code": "code", "json": "code"}


def kind_of(name: str) -> str | None:
    """The kind of a file of that name; `text` when the name says nothing, None when it is known not to be read."""
    suffix = suffix_of(name)
    if suffix in _WITHOUT_READER:
        return None
    return _KIND_OF.get(suffix) or _KIND_OF.get(name.lower(), TEXT)


def suffix_of(name: str) -> str:
    """What stands behind the last dot, in lower case; empty when there is none, or nothing before it."""
    stem, dot, suffix = name.rpartition(".")
    return suffix.lower() if dot and stem else ""


def text_format_of(kind: str) -> str:
    """How headings are told in a file of lines."""
    return _TEXT_FORMATS.get(kind, "text")
