"""Image priors: operators from parameters to images."""

from dipct.generator.base import Generator as Generator
from dipct.generator.channel_dropout import channel_dropout as channel_dropout
from dipct.generator.deep_decoder import DeepDecoder as DeepDecoder
from dipct.generator.implicit import ImplicitNetwork as ImplicitNetwork
from dipct.generator.implicit import fourier_features as fourier_features
from dipct.generator.network import Batching as Batching
from dipct.generator.network import Network as Network
from dipct.generator.network import NetworkGenerator as NetworkGenerator
from dipct.generator.network import Precision as Precision
from dipct.generator.network import apply_network as apply_network
from dipct.generator.network import check_bfloat16 as check_bfloat16
from dipct.generator.network import has_bfloat16 as has_bfloat16
from dipct.generator.parameters import Kind as Kind
from dipct.generator.parameters import Parameter as Parameter
from dipct.generator.parameters import ParameterLayout as ParameterLayout
from dipct.generator.pixels import PixelImage as PixelImage
from dipct.generator.presets import NETWORKS as NETWORKS
from dipct.generator.presets import make_network as make_network
from dipct.generator.region import RegionGenerator as RegionGenerator
from dipct.generator.singular_values import SingularValues as SingularValues
from dipct.generator.subspace import Subspace as Subspace
from dipct.generator.trajectory import principal_directions as principal_directions
from dipct.generator.trajectory import sparsify as sparsify
from dipct.generator.unet import UNet as UNet
