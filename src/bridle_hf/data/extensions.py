"""Extensions of the files that can be decoded, a list for each modality: a folder is read by them."""

from functools import cache

from PIL import Image

# Containers of FFmpeg that hold films; their sound is read, too, where a model hears.
FILMS = frozenset(
    ".3g2 .3gp .asf .avi .divx .dv .f4v .flv .m2ts .m2v .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .nut .ogm .ogv .qt "
    ".rm .rmvb .ts .vob .webm .wmv".split()
)

# What soundfile reads, and what else FFmpeg does. Headerless samples (.raw, .pcm) say neither rate nor type, and most
# .ts beside sounds are TypeScript.
SOUNDS = FILMS - {".m2v", ".ts"} | frozenset(
    ".aac .ac3 .aif .aifc .aiff .amr .ape .au .avr .bwf .caf .dsf .dts .eac3 .flac .htk .ircam .m4a .m4b .m4r .mat4 "
    ".mat5 .mka .mp1 .mp2 .mp3 .mpa .mpc .mpc2k .mpga .nist .oga .ogg .opus .paf .pvf .ra .rf64 .sd2 .sds .shn .snd "
    ".sph .spx .svx .tta .voc .w64 .wav .wave .wavex .weba .wma .wv .wve .xi".split()
)

# Streams of frames without a container, and animations.
VIDEOS = FILMS | frozenset(".264 .265 .apng .gif .h264 .h265 .hevc .ivf .mjpeg .mjpg .y4m".split())

# Formats that Pillow knows by name and cannot decode itself, or only by running another program.
NOT_DECODED = {".bufr", ".eps", ".grib", ".h5", ".hdf", ".mpeg", ".mpg", ".ps"}


def sound_extensions() -> frozenset[str]:
    """`Modality.extensions` of audio."""
    return SOUNDS


def video_extensions() -> frozenset[str]:
    """`Modality.extensions` of videos."""
    return VIDEOS


@cache
def image_extensions() -> frozenset[str]:
    """`Modality.extensions` of images: what this Pillow opens, HEIC too where pillow-heif is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        pass
    else:
        register_heif_opener()
    Image.init()
    return frozenset(ext for ext, form in Image.registered_extensions().items() if form in Image.OPEN) - NOT_DECODED
