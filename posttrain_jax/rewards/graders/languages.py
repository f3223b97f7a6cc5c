"""Languages: the scripts they are written in and, where they share one, words that are common in them."""

from __future__ import annotations

SCRIPTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("en", "de", "fr", "es", "pt", "it", "vi", "fi", "sw", "pl"), ("LATIN",)),
    **dict.fromkeys(("ru", "uk", "bg"), ("CYRILLIC",)),
    **dict.fromkeys(("hi", "mr", "ne"), ("DEVANAGARI",)),
    **dict.fromkeys(("ar", "fa", "ur"), ("ARABIC",)),
    "zh": ("CJK",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA"),
    "ko": ("HANGUL",),
    "bn": ("BENGALI",),
    "gu": ("GUJARATI",),
    "he": ("HEBREW",),
    "kn": ("KANNADA",),
    "ml": ("MALAYALAM",),
    "pa": ("GURMUKHI",),
    "ta": ("TAMIL",),
    "te": ("TELUGU",),
    "th": ("THAI",),
}
_WORDS = {
    "en": "the of and to in is that for it was on are with as be this have from by not you i we they he she an at or",
    "de": "der die das und ist nicht ein eine ich sie mit auf den dem zu von im für auch es wir sich des als wie aber",
    "fr": "le la les des et est une un que qui dans pour pas il elle nous vous je du au avec sur ce sont mais cette",
    "es": "el la los las de y es que en un una por con para no se su del al lo como más pero está son este esta",
    "pt": "o a os as de e é que em um uma por com para não se seu sua do da no na mais mas como está são este esta",
    "it": "il la i gli le di e è che in un una per con non si del della nel sono ma come più questo questa anche da",
    "vi": "và của là có không được cho một các trong với người này đã để những khi tôi bạn về từ như cũng",
    "fi": "ja on ei se hän että mutta oli joka kun niin tämä ovat myös minä sinä voi kuin sen jos olla",
    "sw": "na ya wa kwa ni katika za la kuwa hii hiyo yake watu kama au lakini pia sana hivyo wao mimi wewe",
    "pl": "i w na z jest nie się do że to jak o po ale za od przez dla są ma być ten tak oraz",
    "ru": "и в не на что он с как это по но они мы вы из у за так же от для был она все или",
    "uk": "і в не на що він з як це по але вони ми ви із у за так від для був вона та або є",
    "bg": "и в не на че той с като това по но те ние вие от за така да се е беше тя са или",
    "hi": "है हैं के में की का और को से यह पर नहीं था थे एक कि लिए भी हो कर ने तो इस",
    "mr": "आहे आहेत आणि या च्या मध्ये ची चा हे ते नाही होते एक की साठी पण तर मी आपण करून ही त्या",
    "ne": "छ छन् र को मा यो हो लागि पनि एक गर्न हुन् थियो भने तर यस म हामी गरेको छैन",
    "ar": "في من على أن إلى هذا هذه التي الذي كان ما لا مع عن هو هي و كل قد بعد",
    "fa": "و در به از که این را با است برای آن می یک تا بر هم خود شد بود های",
    "ur": "کے میں کی ہے اور سے کا کو یہ کہ پر نہیں ایک ہیں نے لیے بھی تھا اس وہ",
}
COMMON: dict[str, frozenset[str]] = {code: frozenset(words.split()) for code, words in _WORDS.items()}
